SELECT transaction_key, user_id, amount, node_execution_id, graph_execution_id, owner_pid,
    extract(epoch FROM created_at)::float8 FROM holds
WHERE arena_id = %(arena_id)s
