SELECT extract(epoch FROM created_at)::float8, amount, running_balance, owed, reason, transaction_key,
    node_execution_id::text, graph_execution_id::text
FROM ledger
WHERE user_id = %(user_id)s
ORDER BY created_at DESC, running_balance
LIMIT %(limit)s
