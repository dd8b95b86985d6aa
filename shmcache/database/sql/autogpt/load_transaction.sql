SELECT "userId", amount::int8 FROM "CreditTransaction" WHERE "transactionKey" = %(key)s AND "userId" = %(user_id)s
