WITH moved AS (
    UPDATE "UserBalance" SET balance = balance + %(amount)s WHERE "userId" = %(user_id)s RETURNING balance
)
INSERT INTO "CreditTransaction"
    ("transactionKey", "userId", amount, type, "runningBalance", "isActive", metadata, "createdAt")
SELECT %(key)s, %(user_id)s, %(amount)s, 'TOP_UP', balance, true,
    jsonb_build_object('reason', %(reason)s::text) || %(metadata)s::jsonb
        || jsonb_build_object('shmcache', jsonb_build_object('reason', %(reason)s::text)),
    clock_timestamp()
FROM moved
