WITH oldest AS (
    SELECT e.id FROM "AgentNodeExecution" e LEFT JOIN node_execution_details d ON d.id = e.id
    WHERE e."agentGraphExecutionId" = %(graph_exec_id)s AND e."agentNodeId" = %(node_id)s
        AND e."executionStatus" = 'INCOMPLETE' AND %(name)s::text IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM "AgentNodeExecutionInputOutput" i
            WHERE i."referencedByInputExecId" = e.id AND i.name = %(name)s
        )
    ORDER BY coalesce(extract(epoch FROM d.created_at), extract(epoch FROM e."addedTime")), e.id
    LIMIT 1
    FOR NO KEY UPDATE OF e
), due AS (
    -- Who waited for the lock comes after who had it, whatever its own clock said before.
    SELECT greatest(to_timestamp(%(time)s), (
        SELECT max(d.created_at) + interval '1 microsecond'
        FROM "AgentNodeExecution" e JOIN node_execution_details d ON d.id = e.id
        WHERE e."agentGraphExecutionId" = %(graph_exec_id)s AND e."agentNodeId" = %(node_id)s
    )) AS time
    WHERE NOT EXISTS (SELECT FROM oldest)
), made AS (
    INSERT INTO "AgentNodeExecution"
        (id, "agentGraphExecutionId", "agentNodeId", "executionStatus", "addedTime", stats)
    SELECT %(new_id)s, %(graph_exec_id)s, %(node_id)s, 'INCOMPLETE', due.time, '{}' FROM due
    RETURNING id
), detailed AS (
    INSERT INTO node_execution_details (id, status, created_at)
    SELECT made.id, 'INCOMPLETE', due.time FROM made, due
), chosen AS (
    SELECT id FROM oldest UNION ALL SELECT id FROM made
), given AS (
    INSERT INTO "AgentNodeExecutionInputOutput" (id, name, data, time, "referencedByInputExecId")
    SELECT row_id('input', id, %(name)s), %(name)s, %(value)s::jsonb, to_timestamp(%(time)s), id
    FROM chosen WHERE %(name)s::text IS NOT NULL
    RETURNING id, name, data
), source AS (
    INSERT INTO input_sources (input_id, source_execution_id, source_ordinal)
    SELECT given.id, %(source_id)s, %(source_ordinal)s FROM given WHERE %(source_id)s::text IS NOT NULL
)
SELECT
    chosen.id,
    (SELECT coalesce(jsonb_object_agg(i.name, coalesce(i.data, 'null') ORDER BY i.time, i.id), '{}')
        FROM "AgentNodeExecutionInputOutput" i WHERE i."referencedByInputExecId" = chosen.id)
        || coalesce((SELECT json_object_or_empty(e."executionData") FROM "AgentNodeExecution" e WHERE e.id = chosen.id), '{}')
        || (SELECT coalesce(jsonb_object_agg(given.name, given.data), '{}') FROM given)
FROM chosen
