SELECT given.node_execution_id::text, o.graph_execution_id::text, o.arena_id::text, o.token
FROM unnest(%(node_execs)s::uuid[], %(graph_execs)s::uuid[]) AS given (node_execution_id, graph_execution_id)
JOIN owners o ON o.graph_execution_id = given.graph_execution_id
WHERE (o.arena_id <> %(arena_id)s OR o.token > 1)
    AND NOT EXISTS (SELECT FROM node_executions n WHERE n.id = given.node_execution_id)
