INSERT INTO ledger (transaction_key, user_id, amount, running_balance, reason,
    node_execution_id, graph_execution_id, metadata, created_at, owed)
SELECT transaction_key, user_id, amount, running_balance, reason,
    node_execution_id, graph_execution_id, metadata::jsonb, to_timestamp(time), owed
FROM unnest(%s::text[], %s::uuid[], %s::int8[], %s::int8[], %s::text[], %s::uuid[], %s::uuid[], %s::text[], %s::float8[],
    %s::int8[])
    AS given (transaction_key, user_id, amount, running_balance, reason,
        node_execution_id, graph_execution_id, metadata, time, owed)
