INSERT INTO node_execution_outputs (node_execution_id, ordinal, name, value, time)
SELECT node_execution_id, ordinal, name, value::jsonb, to_timestamp(time)
FROM unnest(%s::uuid[], %s::int[], %s::text[], %s::text[], %s::float8[])
    AS given (node_execution_id, ordinal, name, value, time)
ON CONFLICT (node_execution_id, ordinal) DO NOTHING
