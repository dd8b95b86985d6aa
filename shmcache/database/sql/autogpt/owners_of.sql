SELECT graph_execution_id, graph_execution_id, arena_id::text, token, since
FROM owners
WHERE graph_execution_id = ANY (%(graph_execs)s::text[])
UNION ALL
SELECT n.id, o.graph_execution_id, o.arena_id::text, o.token, o.since
FROM "AgentNodeExecution" n JOIN owners o ON o.graph_execution_id = n."agentGraphExecutionId"
WHERE n.id = ANY (%(node_execs)s::text[])
