SELECT n.id, g.id, g."userId",
    CASE WHEN s.cost ~ '^[1-9][0-9]{0,17}$' THEN s.cost::bigint ELSE 0 END,
    extract(epoch FROM coalesce(n."endedTime", clock_timestamp()))::float8
FROM "AgentGraphExecution" g JOIN "AgentNodeExecution" n ON n."agentGraphExecutionId" = g.id
CROSS JOIN LATERAL (SELECT json_object_or_empty(n.stats)->>'cost' AS cost) s
WHERE g.id = ANY (%(ids)s::text[]) AND n."executionStatus" IN ('COMPLETED', 'FAILED', 'TERMINATED') AND (
    s.cost ~ '^[1-9][0-9]{0,17}$'
        AND NOT EXISTS (SELECT FROM ledger l WHERE l.transaction_key = n.id || %(suffix)s::text)
    OR EXISTS (SELECT FROM holds h WHERE h.transaction_key = n.id || %(suffix)s::text)
)
ORDER BY n.id
