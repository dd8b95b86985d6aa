WITH due AS (
    SELECT s.graph_execution_id, o.arena_id IS NOT NULL AS was_owned
    FROM submissions s
    LEFT JOIN owners o USING (graph_execution_id)
    LEFT JOIN hosts h USING (arena_id)
    JOIN graph_executions g ON g.id = s.graph_execution_id
    WHERE g.status NOT IN ('COMPLETED', 'FAILED', 'TERMINATED') AND CASE
        WHEN o.arena_id IS NULL THEN
            s.offered_at < clock_timestamp() - %(again_seconds)s * 2 ^ least(s.offers - 1, 8) * interval '1 second'
        WHEN h.lease_until > clock_timestamp() THEN false
        ELSE s.offered_at < h.lease_until
            OR s.offered_at < clock_timestamp() - %(again_seconds)s * interval '1 second'
    END
    ORDER BY s.offered_at
    LIMIT 1000
    FOR UPDATE OF s SKIP LOCKED
)
UPDATE submissions s SET offered_at = clock_timestamp(), offers = offers + 1
FROM due WHERE s.graph_execution_id = due.graph_execution_id
RETURNING s.graph_execution_id::text, s.queue, due.was_owned
