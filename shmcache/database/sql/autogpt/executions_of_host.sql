SELECT o.graph_execution_id, coalesce(g."endedAt" > %(since)s, g.id IS NOT NULL)
FROM owners o LEFT JOIN "AgentGraphExecution" g ON g.id = o.graph_execution_id
WHERE o.arena_id = %(arena_id)s AND (%(after)s::text IS NULL OR o.graph_execution_id > %(after)s::text)
ORDER BY o.graph_execution_id
LIMIT %(limit)s
