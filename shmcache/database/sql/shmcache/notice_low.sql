-- What this transaction may change, also by paying debts, is locked first and in order.
WITH due AS (
    SELECT user_id FROM accounts
    WHERE user_id = ANY (%(users)s::uuid[])
        AND (low_noticed IS DISTINCT FROM (balance < %(low_balance)s) OR debt > 0 AND balance > 0)
    ORDER BY user_id
    FOR NO KEY UPDATE
), crossed AS (
    UPDATE accounts SET low_noticed = balance < %(low_balance)s
    FROM due
    WHERE accounts.user_id = due.user_id AND low_noticed IS DISTINCT FROM (balance < %(low_balance)s)
    RETURNING accounts.user_id, balance, low_noticed
)
INSERT INTO notices (id, kind, user_id, balance, amount)
SELECT gen_random_uuid(), 'low_balance', user_id, balance, %(low_balance)s FROM crossed WHERE low_noticed
