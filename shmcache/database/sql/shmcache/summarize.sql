WITH runs AS (
    SELECT status, count(*) AS number FROM graph_executions
    WHERE id = ANY (%(graph_exec_ids)s::uuid[]) GROUP BY status
), steps AS (
    SELECT status, count(*) AS number FROM node_executions
    WHERE graph_execution_id = ANY (%(graph_exec_ids)s::uuid[]) GROUP BY status
), charged AS (
    SELECT count(*) AS number, coalesce(-sum(amount), 0) AS credits FROM ledger
    WHERE graph_execution_id = ANY (%(graph_exec_ids)s::uuid[])
), owned AS (
    SELECT coalesce(sum(opening_balance), 0) AS opening, coalesce(sum(balance), 0) AS closing FROM accounts
    WHERE user_id = ANY (%(user_ids)s::uuid[])
)
SELECT
    (SELECT coalesce(jsonb_object_agg(status, number), '{}') FROM runs),
    (SELECT coalesce(jsonb_object_agg(status, number), '{}') FROM steps),
    (SELECT count(*) FROM node_execution_outputs o JOIN node_executions e ON e.id = o.node_execution_id
        WHERE e.graph_execution_id = ANY (%(graph_exec_ids)s::uuid[])),
    charged.number, charged.credits, owned.opening, owned.closing
FROM charged, owned
