WITH runs AS (
    SELECT status, count(*) AS number FROM graph_executions
    WHERE id = ANY (%(graph_exec_ids)s::text[]) GROUP BY status
), steps AS (
    SELECT status, count(*) AS number FROM node_executions
    WHERE graph_execution_id = ANY (%(graph_exec_ids)s::text[]) GROUP BY status
), charged AS (
    SELECT count(*) AS number, coalesce(-sum(amount), 0) AS credits FROM ledger
    WHERE graph_execution_id = ANY (%(graph_exec_ids)s::text[])
), owned AS (
    SELECT coalesce(sum(opening_balance), 0) AS opening, coalesce(sum(balance), 0) AS closing FROM accounts
    WHERE user_id = ANY (%(user_ids)s::text[])
)
SELECT
    (SELECT coalesce(jsonb_object_agg(status, number), '{}') FROM runs),
    (SELECT coalesce(jsonb_object_agg(status, number), '{}') FROM steps),
    (SELECT count(*) FROM "AgentNodeExecutionInputOutput" o JOIN "AgentNodeExecution" e
        ON e.id = o."referencedByOutputExecId"
        WHERE e."agentGraphExecutionId" = ANY (%(graph_exec_ids)s::text[])),
    charged.number, charged.credits, owned.opening, owned.closing
FROM charged, owned
