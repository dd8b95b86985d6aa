INSERT INTO owners (graph_execution_id, arena_id)
SELECT id, %(arena_id)s FROM graph_executions WHERE id = ANY (%(ids)s::uuid[]) ORDER BY id
ON CONFLICT (graph_execution_id) DO NOTHING
