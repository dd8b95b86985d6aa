WITH ended AS (
    DELETE FROM holds WHERE transaction_key = %(key)s
    RETURNING user_id, amount, node_execution_id, graph_execution_id
), account AS (
    SELECT a.user_id, greatest(0, least(a.balance - credits_reserved(a.user_id) + ended.amount, %(amount)s::int8)) AS paid, ended.amount AS held
    FROM accounts a JOIN ended ON ended.user_id = a.user_id
), moved AS (
    UPDATE accounts SET
        balance = accounts.balance - account.paid,
        debt = accounts.debt + %(amount)s::int8 - account.paid,
        held = accounts.held - account.held
    FROM account WHERE accounts.user_id = account.user_id
    RETURNING accounts.balance
), rows AS (
    INSERT INTO ledger (transaction_key, user_id, amount, running_balance, reason,
        node_execution_id, graph_execution_id, metadata, created_at, owed)
    SELECT %(key)s, account.user_id, -account.paid, moved.balance, 'block',
        ended.node_execution_id, ended.graph_execution_id, '{}', to_timestamp(%(time)s), %(amount)s::int8 - account.paid
    FROM account CROSS JOIN moved CROSS JOIN ended
    WHERE %(amount)s::int8 > 0
), noted AS (
    UPDATE node_executions e SET stats = (stats - 'held') || jsonb_build_object('cost', %(amount)s::int8)
    FROM ended WHERE e.id = ended.node_execution_id
)
SELECT %(amount)s::int8 - paid FROM account
