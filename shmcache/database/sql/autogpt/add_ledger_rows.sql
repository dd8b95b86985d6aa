INSERT INTO "CreditTransaction"
    ("transactionKey", "userId", amount, type, "runningBalance", "isActive", metadata, "createdAt")
SELECT transaction_key, user_id, amount, 'USAGE', running_balance, true,
    jsonb_strip_nulls(jsonb_build_object('reason', reason, 'node_exec_id', node_execution_id,
        'graph_exec_id', graph_execution_id)) || metadata::jsonb
        || jsonb_build_object('shmcache', jsonb_build_object('reason', reason, 'owed', owed)),
    to_timestamp(time)
FROM unnest(%s::text[], %s::text[], %s::int8[], %s::int8[], %s::text[], %s::text[], %s::text[], %s::text[], %s::float8[],
    %s::int8[])
    AS given (transaction_key, user_id, amount, running_balance, reason,
        node_execution_id, graph_execution_id, metadata, time, owed)
