INSERT INTO owners (graph_execution_id, arena_id)
SELECT id, %(arena_id)s FROM "AgentGraphExecution" WHERE id = ANY (%(ids)s::text[]) ORDER BY id
ON CONFLICT (graph_execution_id) DO NOTHING
