SELECT user_id::text, opening_balance, balance, execution_count, debt, held FROM accounts
ORDER BY debt DESC, balance, user_id
LIMIT %(limit)s
