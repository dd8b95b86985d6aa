INSERT INTO node_execution_inputs (node_execution_id, name, value, time, source_execution_id, source_ordinal)
SELECT node_execution_id, name, value::jsonb, to_timestamp(time), source_execution_id, source_ordinal
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::float8[], %s::uuid[], %s::int[], %s::bool[])
    AS given (node_execution_id, name, value, time, source_execution_id, source_ordinal, is_data)
ON CONFLICT (node_execution_id, name) DO UPDATE SET value = excluded.value, time = excluded.time
