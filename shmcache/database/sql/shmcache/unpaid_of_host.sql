SELECT n.id::text, n.graph_execution_id::text, g.user_id::text, (n.stats->>'cost')::bigint,
    extract(epoch FROM coalesce(n.ended_at, clock_timestamp()))::float8
FROM owners o
JOIN graph_executions g ON g.id = o.graph_execution_id
JOIN node_executions n ON n.graph_execution_id = o.graph_execution_id
WHERE (o.arena_id = %(arena_id)s OR o.taken_from = %(arena_id)s AND n.ended_at <= o.taken_at)
    AND n.status IN ('COMPLETED', 'FAILED', 'TERMINATED')
    AND n.ended_at > %(since)s
    AND n.stats->>'cost' ~ '^[1-9][0-9]{0,17}$'
    AND NOT EXISTS (SELECT FROM ledger l WHERE l.transaction_key = n.id::text || ':block')
ORDER BY n.id
LIMIT %(limit)s
