WITH moved AS (
    UPDATE node_executions SET
        status = %(status)s,
        queued_at = CASE WHEN %(status)s = 'QUEUED' THEN to_timestamp(%(time)s) ELSE queued_at END,
        started_at = CASE WHEN %(status)s = 'RUNNING' THEN coalesce(started_at, to_timestamp(%(time)s)) ELSE started_at END,
        ended_at = CASE WHEN %(status)s = ANY ('{COMPLETED,FAILED,TERMINATED}') THEN to_timestamp(%(time)s) END,
        stats = stats || %(stats)s::jsonb,
        moves = moves + 1
    WHERE id = %(id)s AND status = ANY (%(allowed)s)
    RETURNING id
)
INSERT INTO node_execution_inputs (node_execution_id, name, value, time)
SELECT moved.id, given.name, given.value::jsonb, to_timestamp(%(time)s)
FROM moved CROSS JOIN unnest(%(names)s::text[], %(values)s::text[]) AS given (name, value)
ON CONFLICT (node_execution_id, name) DO UPDATE SET value = excluded.value, time = excluded.time
