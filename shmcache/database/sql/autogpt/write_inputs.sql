WITH given AS (
    SELECT row_id('input', node_execution_id::text, name) AS id, node_execution_id::text AS node_execution_id, name, value::jsonb AS value,
        to_timestamp(time) AS time, source_execution_id::text AS source_execution_id, source_ordinal, is_data
    FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::float8[], %s::uuid[], %s::int[], %s::bool[])
        AS given (node_execution_id, name, value, time, source_execution_id, source_ordinal, is_data)
), source AS (
    INSERT INTO input_sources (input_id, source_execution_id, source_ordinal)
    SELECT id, source_execution_id, source_ordinal FROM given WHERE source_execution_id IS NOT NULL
    ON CONFLICT (input_id) DO NOTHING
), data AS (
    UPDATE "AgentNodeExecution" e SET "executionData" = json_object_or_empty(e."executionData") || instead.data
    FROM (
        SELECT node_execution_id, jsonb_object_agg(name, value) AS data FROM given WHERE is_data GROUP BY 1
    ) AS instead
    WHERE e.id = instead.node_execution_id
)
INSERT INTO "AgentNodeExecutionInputOutput" (id, name, data, time, "referencedByInputExecId")
SELECT id, name, value, time, node_execution_id FROM given
ON CONFLICT (id) DO UPDATE SET data = excluded.data, time = excluded.time
