WITH ended AS (
    DELETE FROM holds WHERE transaction_key = %(key)s
    RETURNING user_id, amount, node_execution_id, graph_execution_id
), account AS (
    SELECT a.user_id, greatest(0, least(a.balance - credits_reserved(a.user_id) + ended.amount, %(amount)s::int8)) AS paid, ended.amount AS held
    FROM accounts a JOIN ended ON ended.user_id = a.user_id
), moved AS (
    UPDATE "UserBalance" b SET balance = b.balance - account.paid
    FROM account WHERE b."userId" = account.user_id
    RETURNING b.balance
), detailed AS (
    UPDATE account_details d SET debt = d.debt + %(amount)s::int8 - account.paid, held = d.held - account.held
    FROM account WHERE d.user_id = account.user_id
), rows AS (
    INSERT INTO "CreditTransaction"
        ("transactionKey", "userId", amount, type, "runningBalance", "isActive", metadata, "createdAt")
    SELECT %(key)s, account.user_id, -account.paid, 'USAGE', moved.balance, true,
        jsonb_build_object('reason', 'block', 'node_exec_id', ended.node_execution_id,
            'graph_exec_id', ended.graph_execution_id,
            'shmcache', jsonb_build_object('reason', 'block', 'owed', %(amount)s::int8 - account.paid)),
        to_timestamp(%(time)s)
    FROM account CROSS JOIN moved CROSS JOIN ended
    WHERE %(amount)s::int8 > 0
), noted AS (
    UPDATE "AgentNodeExecution" e
    SET stats = (json_object_or_empty(e.stats) - 'held') || jsonb_build_object('cost', %(amount)s::int8)
    FROM ended WHERE e.id = ended.node_execution_id
)
SELECT %(amount)s::int8 - paid FROM account
