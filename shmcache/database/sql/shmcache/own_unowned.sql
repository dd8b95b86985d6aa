WITH unowned AS (
    SELECT id FROM graph_executions WHERE id = %(id)s FOR NO KEY UPDATE
)
INSERT INTO owners (graph_execution_id, arena_id, since)
SELECT id, %(arena_id)s, %(since)s FROM unowned
ON CONFLICT (graph_execution_id) DO NOTHING
RETURNING token
