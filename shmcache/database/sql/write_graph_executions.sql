INSERT INTO graph_executions AS mine (id, graph_id, user_id, status, inputs, created_at, started_at, ended_at, stats)
SELECT id, graph_id, user_id, status, inputs::jsonb,
    to_timestamp(created_at), to_timestamp(started_at), to_timestamp(ended_at), stats::jsonb
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::float8[], %s::float8[], %s::float8[], %s::text[])
    AS given (id, graph_id, user_id, status, inputs, created_at, started_at, ended_at, stats)
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status,
    started_at = least(mine.started_at, excluded.started_at),
    ended_at = excluded.ended_at,
    stats = excluded.stats
WHERE mine.status NOT IN ('COMPLETED', 'FAILED') OR mine.status = excluded.status
