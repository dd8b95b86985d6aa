WITH account AS (
    SELECT balance, balance - debt - credits_reserved(user_id) AS available FROM accounts WHERE user_id = %(user_id)s
), due AS (
    SELECT given.* FROM unnest(%(keys)s::text[], %(amounts)s::int8[], %(reasons)s::text[], %(metadata)s::text[],
        %(estimates)s::bool[])
        WITH ORDINALITY AS given (transaction_key, amount, reason, metadata, is_estimate, place)
    WHERE NOT EXISTS (SELECT FROM "CreditTransaction" l WHERE l."transactionKey" = given.transaction_key)
        AND NOT EXISTS (
            SELECT FROM "AgentNodeExecution" e WHERE e.id = %(node_exec_id)s AND json_object_or_empty(e.stats) ? 'cost'
        )
), total AS (
    SELECT coalesce(sum(amount), 0)::int8 AS amount, coalesce(sum(amount) FILTER (WHERE is_estimate), 0)::int8 AS held
    FROM due
), paid AS (
    UPDATE "UserBalance" b SET balance = b.balance - (total.amount - total.held)
    FROM total CROSS JOIN account
    WHERE b."userId" = %(user_id)s AND (total.amount = 0 OR account.available >= total.amount)
    RETURNING b.balance, account.available - total.amount AS available, total.held
), detailed AS (
    UPDATE account_details d SET held = d.held + paid.held FROM paid WHERE d.user_id = %(user_id)s AND paid.held > 0
), rows AS (
    INSERT INTO "CreditTransaction"
        ("transactionKey", "userId", amount, type, "runningBalance", "isActive", metadata, "createdAt")
    SELECT due.transaction_key, %(user_id)s, -due.amount, 'USAGE',
        paid.balance + total.amount - total.held - sum(due.amount) OVER (ORDER BY due.place), true,
        jsonb_strip_nulls(jsonb_build_object('reason', due.reason, 'node_exec_id', %(node_exec_id)s::text,
            'graph_exec_id', %(graph_exec_id)s::text)) || due.metadata::jsonb
            || jsonb_build_object('shmcache', jsonb_build_object('reason', due.reason)),
        to_timestamp(%(time)s)
    FROM due CROSS JOIN paid CROSS JOIN total
    WHERE due.amount > 0 AND NOT due.is_estimate
), held AS (
    INSERT INTO holds (transaction_key, user_id, amount, node_execution_id, graph_execution_id, owner_pid, created_at)
    SELECT due.transaction_key, %(user_id)s, due.amount, %(node_exec_id)s, %(graph_exec_id)s, %(owner_pid)s,
        to_timestamp(%(time)s)
    FROM due CROSS JOIN paid
    WHERE due.is_estimate
), noted AS (
    UPDATE "AgentNodeExecution" SET stats = json_object_or_empty(stats) || CASE
        WHEN EXISTS (SELECT FROM due WHERE is_estimate) THEN jsonb_build_object('cost', %(cost)s::int8, 'held', %(cost)s::int8)
        ELSE jsonb_build_object('cost', %(cost)s::int8)
    END
    WHERE id = %(node_exec_id)s AND NOT json_object_or_empty(stats) ? 'cost' AND EXISTS (SELECT FROM paid)
)
SELECT account.available, total.amount, paid.available FROM account CROSS JOIN total LEFT JOIN paid ON true
