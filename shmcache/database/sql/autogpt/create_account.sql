WITH opened AS (
    -- By the names of its columns, whatever others it has: their tables grow.
    INSERT INTO "UserBalance"
    SELECT (jsonb_populate_record(NULL::"UserBalance", jsonb_build_object(
        'userId', %(user_id)s::text, 'balance', %(balance)s::int8, 'updatedAt', now()))).*
    ON CONFLICT ("userId") DO NOTHING
    RETURNING "userId", balance
)
INSERT INTO "CreditTransaction"
    ("transactionKey", "userId", amount, type, "runningBalance", "isActive", metadata, "createdAt")
SELECT 'shmcache-opening-balance', "userId", balance, 'GRANT', balance, true,
    '{"reason": "opening balance", "shmcache": {"reason": "opening"}}', clock_timestamp()
FROM opened WHERE balance > 0
