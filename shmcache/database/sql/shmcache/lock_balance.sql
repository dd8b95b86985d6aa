SELECT balance FROM accounts WHERE user_id = %(user_id)s FOR NO KEY UPDATE
