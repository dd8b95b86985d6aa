-- A key is looked for in its own partition: a set of all keys would be made of the whole ledger.
SELECT n.id::text, n.graph_execution_id::text, g.user_id::text,
    CASE WHEN n.stats->>'cost' ~ '^[1-9][0-9]{0,17}$' THEN (n.stats->>'cost')::bigint ELSE 0 END,
    extract(epoch FROM coalesce(n.ended_at, clock_timestamp()))::float8
FROM graph_executions g JOIN node_executions n ON n.graph_execution_id = g.id
WHERE g.id = ANY (%(ids)s::uuid[]) AND n.status IN ('COMPLETED', 'FAILED', 'TERMINATED') AND (
    n.stats->>'cost' ~ '^[1-9][0-9]{0,17}$'
        AND (SELECT l.amount FROM ledger l WHERE l.transaction_key = n.id::text || %(suffix)s::text) IS NULL
    OR EXISTS (SELECT FROM holds h WHERE h.transaction_key = n.id::text || %(suffix)s::text)
)
ORDER BY n.id
