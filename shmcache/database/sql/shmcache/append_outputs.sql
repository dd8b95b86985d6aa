INSERT INTO node_execution_outputs (node_execution_id, ordinal, name, value, time)
SELECT e.id, least(%(ordinal)s::int, e.recorded) + given.place::int - 1, given.name, given.value::jsonb,
    to_timestamp(given.time)
FROM (
    SELECT n.id, (SELECT count(*)::int FROM node_execution_outputs o WHERE o.node_execution_id = n.id) AS recorded
    FROM node_executions n WHERE n.id = %(id)s
) AS e
CROSS JOIN unnest(%(names)s::text[], %(values)s::text[], %(times)s::float8[])
    WITH ORDINALITY AS given (name, value, time, place)
ON CONFLICT (node_execution_id, ordinal) DO NOTHING
