WITH due AS (
    SELECT least(debt, balance - credits_reserved(user_id)) AS amount FROM accounts WHERE user_id = %(user_id)s
), moved AS (
    UPDATE "UserBalance" b SET balance = b.balance - due.amount
    FROM due WHERE b."userId" = %(user_id)s AND due.amount > 0
    RETURNING b.balance, due.amount
), paid AS (
    UPDATE account_details SET debt = debt - moved.amount FROM moved WHERE user_id = %(user_id)s
)
INSERT INTO "CreditTransaction"
    ("transactionKey", "userId", amount, type, "runningBalance", "isActive", metadata, "createdAt")
SELECT 'debt:' || gen_random_uuid(), %(user_id)s, -amount, 'USAGE', balance, true,
    jsonb_build_object('reason', 'debt', 'shmcache', jsonb_build_object('reason', 'debt', 'owed', -amount)),
    clock_timestamp()
FROM moved
