UPDATE graph_executions SET
    status = coalesce(%(status)s, status),
    started_at = CASE WHEN %(status)s = 'RUNNING' THEN coalesce(started_at, to_timestamp(%(time)s)) ELSE started_at END,
    ended_at = CASE
        WHEN %(status)s = ANY ('{COMPLETED,FAILED,TERMINATED}') THEN to_timestamp(%(time)s)
        WHEN %(status)s IS NULL THEN ended_at
    END,
    stats = stats || %(stats)s::jsonb,
    moves = moves + (%(status)s::text IS NOT NULL)::int
WHERE id = %(id)s AND (%(status)s::text IS NULL OR status = ANY (%(allowed)s))
