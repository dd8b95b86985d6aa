WITH e AS (
    SELECT n.id, count(o.id)::int AS recorded, max(o.time) AS last
    FROM "AgentNodeExecution" n LEFT JOIN "AgentNodeExecutionInputOutput" o ON o."referencedByOutputExecId" = n.id
    WHERE n.id = %(id)s
    GROUP BY n.id
), rows AS (
    SELECT e.id, e.recorded, e.last, least(%(ordinal)s::int, e.recorded) + given.place::int - 1 AS ordinal,
        given.name, given.value::jsonb AS value,
        date_trunc('milliseconds', to_timestamp(given.time) AT TIME ZONE 'UTC') AS time
    FROM e CROSS JOIN unnest(%(names)s::text[], %(values)s::text[], %(times)s::float8[])
        WITH ORDINALITY AS given (name, value, time, place)
)
INSERT INTO "AgentNodeExecutionInputOutput" (id, name, data, time, "referencedByOutputExecId")
-- Their order is that of their times, in milliseconds: each is later than the one before it.
SELECT row_id('output', id, ordinal::text), name, value,
    greatest(
        last + (ordinal - recorded + 1) * interval '1 millisecond',
        max(time - ordinal * interval '1 millisecond') OVER (ORDER BY ordinal) + ordinal * interval '1 millisecond'
    ), id
FROM rows
ON CONFLICT (id) DO NOTHING
