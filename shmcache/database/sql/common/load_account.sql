SELECT user_id, opening_balance, balance, execution_count, debt, held FROM accounts WHERE user_id = %(user_id)s
