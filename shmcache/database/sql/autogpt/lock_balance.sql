SELECT balance::int8 FROM "UserBalance" WHERE "userId" = %(user_id)s FOR NO KEY UPDATE
