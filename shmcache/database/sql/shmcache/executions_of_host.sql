SELECT o.graph_execution_id::text, coalesce(g.ended_at > %(since)s, g.id IS NOT NULL)
FROM owners o LEFT JOIN graph_executions g ON g.id = o.graph_execution_id
WHERE o.arena_id = %(arena_id)s AND (%(after)s::uuid IS NULL OR o.graph_execution_id > %(after)s::uuid)
ORDER BY o.graph_execution_id
LIMIT %(limit)s
