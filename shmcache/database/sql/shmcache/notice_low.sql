WITH crossed AS (
    UPDATE accounts SET low_noticed = balance < %(low_balance)s
    WHERE user_id = ANY (%(users)s::uuid[]) AND low_noticed IS DISTINCT FROM (balance < %(low_balance)s)
    RETURNING user_id, balance, low_noticed
)
INSERT INTO notices (id, kind, user_id, balance, amount)
SELECT gen_random_uuid(), 'low_balance', user_id, balance, %(low_balance)s FROM crossed WHERE low_noticed
