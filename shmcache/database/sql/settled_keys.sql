SELECT transaction_key FROM ledger WHERE transaction_key = ANY (%(keys)s::text[])
