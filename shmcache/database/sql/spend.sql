WITH account AS (
    SELECT balance FROM accounts WHERE user_id = %(user_id)s
), due AS (
    SELECT given.* FROM unnest(%(keys)s::text[], %(amounts)s::int8[], %(reasons)s::text[], %(metadata)s::text[])
        WITH ORDINALITY AS given (transaction_key, amount, reason, metadata, place)
    WHERE amount > 0 AND NOT EXISTS (SELECT FROM ledger l WHERE l.transaction_key = given.transaction_key)
        AND NOT EXISTS (SELECT FROM node_executions e WHERE e.id = %(node_exec_id)s AND e.stats ? 'cost')
), total AS (
    SELECT coalesce(sum(amount), 0)::int8 AS amount FROM due
), paid AS (
    UPDATE accounts SET balance = accounts.balance - total.amount FROM total
    WHERE accounts.user_id = %(user_id)s AND accounts.balance >= total.amount
    RETURNING accounts.balance
), rows AS (
    INSERT INTO ledger (transaction_key, user_id, amount, running_balance, reason,
        node_execution_id, graph_execution_id, metadata, created_at)
    SELECT due.transaction_key, %(user_id)s, -due.amount,
        paid.balance + total.amount - sum(due.amount) OVER (ORDER BY due.place), due.reason,
        %(node_exec_id)s, %(graph_exec_id)s, due.metadata::jsonb, to_timestamp(%(time)s)
    FROM due CROSS JOIN paid CROSS JOIN total
), noted AS (
    UPDATE node_executions SET stats = stats || jsonb_build_object('cost', %(cost)s::int8)
    WHERE id = %(node_exec_id)s AND NOT stats ? 'cost' AND EXISTS (SELECT FROM paid)
)
SELECT account.balance, total.amount, paid.balance FROM account CROSS JOIN total LEFT JOIN paid ON true
