INSERT INTO graph_executions AS mine (id, graph_id, user_id, status, inputs, created_at, started_at, ended_at, stats, moves)
SELECT id, graph_id, user_id, status, inputs::jsonb,
    to_timestamp(created_at), to_timestamp(started_at), to_timestamp(ended_at), stats::jsonb, moves
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::float8[], %s::float8[], %s::float8[], %s::text[], %s::int[],
    %s::int[], %s::text[])
    AS given (id, graph_id, user_id, status, inputs, created_at, started_at, ended_at, stats, moves, graph_version, preset_id)
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status,
    started_at = least(mine.started_at, excluded.started_at),
    ended_at = excluded.ended_at,
    stats = excluded.stats,
    moves = excluded.moves
WHERE CASE
    WHEN mine.status IN ('COMPLETED', 'FAILED') THEN mine.status = excluded.status
    WHEN excluded.status IN ('COMPLETED', 'FAILED') THEN true
    ELSE (excluded.moves, status_rank(excluded.status)) >= (mine.moves, status_rank(mine.status))
END
