INSERT INTO graph_executions (id, graph_id, user_id, status, inputs, created_at, stats)
SELECT %(id)s, id, %(user_id)s, 'QUEUED', coalesce(%(inputs)s::jsonb, starts), to_timestamp(%(time)s), '{}'
FROM graphs WHERE id = %(graph_id)s
