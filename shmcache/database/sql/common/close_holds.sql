DELETE FROM holds WHERE transaction_key = ANY (%(keys)s::text[]) RETURNING user_id, amount
