-- What this transaction may change, also by paying debts, is locked first and in order.
WITH due AS (
    SELECT d.user_id FROM "UserBalance" b JOIN account_details d ON d.user_id = b."userId"
    WHERE d.user_id = ANY (%(users)s::text[])
        AND (d.low_noticed IS DISTINCT FROM (b.balance < %(low_balance)s) OR d.debt > 0 AND b.balance > 0)
    ORDER BY b."userId"
    FOR NO KEY UPDATE
), crossed AS (
    UPDATE account_details d SET low_noticed = b.balance < %(low_balance)s
    FROM due JOIN "UserBalance" b ON b."userId" = due.user_id
    WHERE d.user_id = due.user_id AND d.low_noticed IS DISTINCT FROM (b.balance < %(low_balance)s)
    RETURNING d.user_id, b.balance, d.low_noticed
)
INSERT INTO notices (id, kind, user_id, balance, amount)
SELECT gen_random_uuid(), 'low_balance', user_id, balance, %(low_balance)s FROM crossed WHERE low_noticed
