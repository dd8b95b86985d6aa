WITH crossed AS (
    UPDATE account_details d SET low_noticed = b.balance < %(low_balance)s
    FROM "UserBalance" b
    WHERE b."userId" = d.user_id AND d.user_id = ANY (%(users)s::text[])
        AND d.low_noticed IS DISTINCT FROM (b.balance < %(low_balance)s)
    RETURNING d.user_id, b.balance, d.low_noticed
)
INSERT INTO notices (id, kind, user_id, balance, amount)
SELECT gen_random_uuid(), 'low_balance', user_id, balance, %(low_balance)s FROM crossed WHERE low_noticed
