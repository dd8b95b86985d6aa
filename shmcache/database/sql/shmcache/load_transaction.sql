SELECT user_id::text, amount FROM ledger WHERE transaction_key = %(key)s
