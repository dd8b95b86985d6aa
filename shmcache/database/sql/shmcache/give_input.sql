WITH oldest AS (
    SELECT e.id FROM node_executions e
    WHERE e.graph_execution_id = %(graph_exec_id)s AND e.node_id = %(node_id)s AND e.status = 'INCOMPLETE'
        AND %(name)s::text IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM node_execution_inputs i WHERE i.node_execution_id = e.id AND i.name = %(name)s
        )
    ORDER BY e.created_at, e.id
    LIMIT 1
    FOR NO KEY UPDATE OF e
), made AS (
    INSERT INTO node_executions (id, graph_execution_id, node_id, status, created_at, stats)
    -- Who waited for the lock comes after who had it, whatever its own clock said before.
    SELECT %(new_id)s, %(graph_exec_id)s, %(node_id)s, 'INCOMPLETE', greatest(to_timestamp(%(time)s), (
        SELECT max(e.created_at) + interval '1 microsecond' FROM node_executions e
        WHERE e.graph_execution_id = %(graph_exec_id)s AND e.node_id = %(node_id)s
    )), '{}'
    FROM refuse_orphans(ARRAY[%(graph_exec_id)s]::uuid[], '{}')
    WHERE NOT EXISTS (SELECT FROM oldest)
    RETURNING id
), chosen AS (
    SELECT id FROM oldest UNION ALL SELECT id FROM made
), given AS (
    INSERT INTO node_execution_inputs (node_execution_id, name, value, time, source_execution_id, source_ordinal)
    SELECT id, %(name)s, %(value)s::jsonb, to_timestamp(%(time)s), %(source_id)s, %(source_ordinal)s
    FROM chosen WHERE %(name)s::text IS NOT NULL
    RETURNING name, value
)
SELECT
    chosen.id,
    (SELECT coalesce(jsonb_object_agg(i.name, i.value), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = chosen.id)
        || (SELECT coalesce(jsonb_object_agg(given.name, given.value), '{}') FROM given)
FROM chosen
