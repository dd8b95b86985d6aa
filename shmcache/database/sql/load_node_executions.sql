SELECT
    e.id, e.graph_execution_id, e.node_id, n.block_id, g.user_id, e.status,
    (SELECT coalesce(jsonb_object_agg(i.name, i.value), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id),
    (SELECT coalesce(jsonb_object_agg(i.name, jsonb_build_array(i.source_execution_id, i.source_ordinal)), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id AND i.source_execution_id IS NOT NULL),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(o.name, o.value) ORDER BY o.ordinal), '[]')
        FROM node_execution_outputs o WHERE o.node_execution_id = e.id),
    extract(epoch FROM e.created_at), extract(epoch FROM e.queued_at),
    extract(epoch FROM e.started_at), extract(epoch FROM e.ended_at), e.stats
FROM node_executions e
JOIN nodes n ON n.id = e.node_id
JOIN graph_executions g ON g.id = e.graph_execution_id
WHERE (%(id)s::uuid IS NULL OR e.id = %(id)s)
    AND (%(graph_exec_id)s::uuid IS NULL OR e.graph_execution_id = %(graph_exec_id)s)
    AND (%(node_id)s::uuid IS NULL OR e.node_id = %(node_id)s)
    AND (%(block_ids)s::text[] IS NULL OR n.block_id = ANY (%(block_ids)s))
    AND (%(statuses)s::text[] IS NULL OR e.status = ANY (%(statuses)s))
ORDER BY e.created_at, e.id
LIMIT %(limit)s
