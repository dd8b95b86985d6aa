WITH given AS (
    SELECT node_execution_id::text AS node_execution_id, ordinal, name, value::jsonb AS value,
        date_trunc('milliseconds', to_timestamp(time) AT TIME ZONE 'UTC') AS time
    FROM unnest(%s::uuid[], %s::int[], %s::text[], %s::text[], %s::float8[])
        AS given (node_execution_id, ordinal, name, value, time)
), recorded AS (
    -- When the one before the first of these was; where it is missing, when the last of all was: with room for one.
    SELECT first.node_execution_id, coalesce(
            (SELECT o.time + interval '1 millisecond' FROM "AgentNodeExecutionInputOutput" o
                WHERE o.id = row_id('output', first.node_execution_id, (first.ordinal - 1)::text)),
            (SELECT max(o.time) + interval '2 milliseconds' FROM "AgentNodeExecutionInputOutput" o
                WHERE o."referencedByOutputExecId" = first.node_execution_id)
        ) - first.ordinal * interval '1 millisecond' AS base
    FROM (SELECT node_execution_id, min(ordinal) AS ordinal FROM given GROUP BY 1) AS first
    WHERE first.ordinal > 0
)
INSERT INTO "AgentNodeExecutionInputOutput" (id, name, data, time, "referencedByOutputExecId")
-- Their order is that of their times, in milliseconds: each is later than the one before it.
SELECT row_id('output', node_execution_id, ordinal::text), name, value,
    greatest(base, max(time - ordinal * interval '1 millisecond')
        OVER (PARTITION BY node_execution_id ORDER BY ordinal)) + ordinal * interval '1 millisecond',
    node_execution_id
FROM given LEFT JOIN recorded USING (node_execution_id)
ON CONFLICT (id) DO NOTHING
