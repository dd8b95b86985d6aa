SELECT
    id, graph_id, user_id, status, inputs,
    extract(epoch FROM created_at), extract(epoch FROM started_at), extract(epoch FROM ended_at), stats, moves, 1, NULL
FROM graph_executions
WHERE id = %(id)s
