SELECT
    e.id,
    (SELECT coalesce(jsonb_object_agg(i.name, i.value), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id)
FROM node_executions e
WHERE e.id = %(id)s
