WITH account AS (
    SELECT balance - debt - credits_reserved(user_id) AS available FROM accounts WHERE user_id = %(user_id)s
), due AS (
    SELECT given.* FROM unnest(%(keys)s::text[], %(amounts)s::int8[], %(reasons)s::text[], %(metadata)s::text[],
        %(estimates)s::bool[])
        WITH ORDINALITY AS given (transaction_key, amount, reason, metadata, is_estimate, place)
    WHERE (SELECT l.amount FROM ledger l WHERE l.transaction_key = given.transaction_key) IS NULL
        AND NOT EXISTS (SELECT FROM node_executions e WHERE e.id = %(node_exec_id)s AND e.stats ? 'cost')
), total AS (
    SELECT coalesce(sum(amount), 0)::int8 AS amount, coalesce(sum(amount) FILTER (WHERE is_estimate), 0)::int8 AS held
    FROM due
), paid AS (
    UPDATE accounts SET balance = accounts.balance - (total.amount - total.held), held = accounts.held + total.held
    FROM total CROSS JOIN account
    WHERE accounts.user_id = %(user_id)s AND (total.amount = 0 OR account.available >= total.amount)
    RETURNING accounts.balance, account.available - total.amount AS available
), rows AS (
    INSERT INTO ledger (transaction_key, user_id, amount, running_balance, reason,
        node_execution_id, graph_execution_id, metadata, created_at)
    SELECT due.transaction_key, %(user_id)s, -due.amount,
        paid.balance + total.amount - total.held - sum(due.amount) OVER (ORDER BY due.place), due.reason,
        %(node_exec_id)s, %(graph_exec_id)s, due.metadata::jsonb, to_timestamp(%(time)s)
    FROM due CROSS JOIN paid CROSS JOIN total
    WHERE due.amount > 0 AND NOT due.is_estimate
), held AS (
    INSERT INTO holds (transaction_key, user_id, amount, node_execution_id, graph_execution_id, owner_pid, created_at)
    SELECT due.transaction_key, %(user_id)s, due.amount, %(node_exec_id)s, %(graph_exec_id)s, %(owner_pid)s,
        to_timestamp(%(time)s)
    FROM due CROSS JOIN paid
    WHERE due.is_estimate
), noted AS (
    UPDATE node_executions SET stats = stats || CASE
        WHEN EXISTS (SELECT FROM due WHERE is_estimate) THEN jsonb_build_object('cost', %(cost)s::int8, 'held', %(cost)s::int8)
        ELSE jsonb_build_object('cost', %(cost)s::int8)
    END
    WHERE id = %(node_exec_id)s AND NOT stats ? 'cost' AND EXISTS (SELECT FROM paid)
)
SELECT account.available, total.amount, paid.available FROM account CROSS JOIN total LEFT JOIN paid ON true
