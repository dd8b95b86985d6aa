SELECT transaction_key, user_id::text, amount, node_execution_id::text, graph_execution_id::text, arena_id::text,
    extract(epoch FROM created_at)::float8
FROM holds
ORDER BY created_at
LIMIT %(limit)s
