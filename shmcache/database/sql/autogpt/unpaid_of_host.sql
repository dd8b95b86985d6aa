SELECT n.id, n."agentGraphExecutionId", g."userId", (json_object_or_empty(n.stats)->>'cost')::bigint,
    extract(epoch FROM coalesce(n."endedTime", clock_timestamp()))::float8
FROM owners o
JOIN "AgentGraphExecution" g ON g.id = o.graph_execution_id::text
JOIN "AgentNodeExecution" n ON n."agentGraphExecutionId" = g.id
WHERE (o.arena_id = %(arena_id)s OR o.taken_from = %(arena_id)s AND n."endedTime" <= o.taken_at)
    AND n."executionStatus" IN ('COMPLETED', 'FAILED', 'TERMINATED')
    AND n."endedTime" > %(since)s
    AND json_object_or_empty(n.stats)->>'cost' ~ '^[1-9][0-9]{0,17}$'
    AND NOT EXISTS (SELECT FROM ledger l WHERE l.transaction_key = n.id || ':block')
ORDER BY n.id
LIMIT %(limit)s
