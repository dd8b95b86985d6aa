SELECT user_id, balance, low_noticed FROM accounts WHERE user_id = ANY (%(users)s::uuid[]) ORDER BY user_id FOR NO KEY UPDATE
