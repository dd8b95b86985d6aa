SELECT b."userId", b.balance::int8, d.low_noticed
FROM "UserBalance" b JOIN account_details d ON d.user_id = b."userId"
WHERE b."userId" = ANY (%(users)s::text[])
ORDER BY b."userId"
FOR NO KEY UPDATE
