-- Each key is looked for in its own partition: of an array the server would look for all in each.
SELECT given.transaction_key, l.owed
FROM unnest(%(keys)s::text[]) AS given (transaction_key)
CROSS JOIN LATERAL (SELECT owed FROM ledger WHERE ledger.transaction_key = given.transaction_key OFFSET 0) AS l
