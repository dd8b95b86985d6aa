WITH moved AS (
    UPDATE accounts SET balance = balance + %(amount)s WHERE user_id = %(user_id)s RETURNING balance
)
INSERT INTO ledger (transaction_key, user_id, amount, running_balance, reason, metadata, created_at)
SELECT %(key)s, %(user_id)s, %(amount)s, balance, %(reason)s, %(metadata)s::jsonb, clock_timestamp() FROM moved
