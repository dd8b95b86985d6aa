INSERT INTO accounts (user_id, opening_balance, balance) VALUES (%(user_id)s, %(balance)s, %(balance)s)
ON CONFLICT (user_id) DO NOTHING
