WITH moved AS (
    UPDATE "AgentGraphExecution" SET
        "executionStatus" = coalesce(%(status)s::text::"AgentExecutionStatus", "executionStatus"),
        "startedAt" = CASE WHEN %(status)s::text = 'RUNNING'
            THEN coalesce("startedAt", to_timestamp(%(time)s)) ELSE "startedAt" END,
        "endedAt" = CASE
            WHEN %(status)s::text = ANY ('{COMPLETED,FAILED,TERMINATED}') THEN to_timestamp(%(time)s)
            WHEN %(status)s::text IS NULL THEN "endedAt"
        END,
        stats = json_object_or_empty(stats) || %(stats)s::jsonb
    WHERE id = %(id)s AND (%(status)s::text IS NULL OR "executionStatus"::text = ANY (%(allowed)s))
    RETURNING id, "executionStatus"::text AS status, "createdAt"
)
INSERT INTO graph_execution_details AS mine (id, status, moves, inputs, created_at)
SELECT id, status, 1, '{}', "createdAt" FROM moved WHERE %(status)s::text IS NOT NULL
ON CONFLICT (id) DO UPDATE SET status = excluded.status, moves = mine.moves + 1
