INSERT INTO owners (graph_execution_id, arena_id, since)
SELECT id, %(arena_id)s, %(since)s FROM graph_executions WHERE id = %(id)s
ON CONFLICT (graph_execution_id) DO NOTHING
RETURNING token
