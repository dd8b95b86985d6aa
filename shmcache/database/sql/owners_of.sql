SELECT graph_execution_id::text, graph_execution_id::text, arena_id::text, token, since
FROM owners
WHERE graph_execution_id = ANY (%(graph_execs)s::uuid[])
UNION ALL
SELECT n.id::text, o.graph_execution_id::text, o.arena_id::text, o.token, o.since
FROM node_executions n JOIN owners o ON o.graph_execution_id = n.graph_execution_id
WHERE n.id = ANY (%(node_execs)s::uuid[])
