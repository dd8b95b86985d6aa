WITH due AS (
    SELECT least(debt, balance - credits_reserved(user_id)) AS amount FROM accounts WHERE user_id = %(user_id)s
), moved AS (
    UPDATE accounts SET balance = balance - due.amount, debt = debt - due.amount
    FROM due WHERE user_id = %(user_id)s AND due.amount > 0
    RETURNING balance, due.amount
)
INSERT INTO ledger (transaction_key, user_id, amount, owed, running_balance, reason, metadata, created_at)
SELECT 'debt:' || gen_random_uuid(), %(user_id)s, -amount, -amount, balance, 'debt', '{}', clock_timestamp() FROM moved
