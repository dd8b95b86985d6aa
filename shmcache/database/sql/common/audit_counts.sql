SELECT (SELECT count(*) FROM accounts), count(*), count(DISTINCT (transaction_key, user_id)),
    count(*) FILTER (WHERE amount < 0 AND reason <> 'carried forward')
FROM ledger
