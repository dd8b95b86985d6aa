WITH moved AS (
    UPDATE "AgentNodeExecution" SET
        "executionStatus" = %(status)s::text::"AgentExecutionStatus",
        "queuedTime" = CASE WHEN %(status)s::text = 'QUEUED' THEN to_timestamp(%(time)s) ELSE "queuedTime" END,
        "startedTime" = CASE WHEN %(status)s::text = 'RUNNING'
            THEN coalesce("startedTime", to_timestamp(%(time)s)) ELSE "startedTime" END,
        "endedTime" = CASE WHEN %(status)s::text = ANY ('{COMPLETED,FAILED,TERMINATED}') THEN to_timestamp(%(time)s) END,
        stats = json_object_or_empty(stats) || %(stats)s::jsonb,
        "executionData" = CASE WHEN cardinality(%(names)s::text[]) = 0 THEN "executionData"
            ELSE json_object_or_empty("executionData") || (
                SELECT jsonb_object_agg(given.name, given.value::jsonb)
                FROM unnest(%(names)s::text[], %(values)s::text[]) AS given (name, value)
            ) END
    WHERE id = %(id)s AND "executionStatus"::text = ANY (%(allowed)s)
    RETURNING id, "addedTime"
), detailed AS (
    INSERT INTO node_execution_details AS mine (id, status, moves, created_at)
    SELECT id, %(status)s::text, 1, "addedTime" FROM moved
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, moves = mine.moves + 1
)
INSERT INTO "AgentNodeExecutionInputOutput" (id, name, data, time, "referencedByInputExecId")
SELECT row_id('input', moved.id, given.name), given.name, given.value::jsonb, to_timestamp(%(time)s), moved.id
FROM moved CROSS JOIN unnest(%(names)s::text[], %(values)s::text[]) AS given (name, value)
ON CONFLICT (id) DO UPDATE SET data = excluded.data, time = excluded.time
