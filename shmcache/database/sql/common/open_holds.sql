INSERT INTO holds (transaction_key, user_id, amount, node_execution_id, graph_execution_id, arena_id, owner_pid, created_at)
SELECT transaction_key, user_id, amount, node_execution_id, graph_execution_id, %s::uuid, owner_pid, to_timestamp(time)
FROM unnest(%s::text[], %s::uuid[], %s::int8[], %s::uuid[], %s::uuid[], %s::int4[], %s::float8[])
    AS given (transaction_key, user_id, amount, node_execution_id, graph_execution_id, owner_pid, time)
ON CONFLICT (transaction_key) DO NOTHING
RETURNING user_id, amount
