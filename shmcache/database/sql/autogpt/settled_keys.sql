SELECT transaction_key, owed FROM ledger WHERE transaction_key = ANY (%(keys)s::text[])
