SELECT a.user_id, a.opening_balance, a.balance, a.debt, a.held,
    coalesce(l.amount, 0), coalesce(l.owed, 0), coalesce(h.amount, 0)
FROM accounts a
LEFT JOIN (SELECT user_id, sum(amount) AS amount, sum(owed) AS owed FROM ledger GROUP BY user_id) l USING (user_id)
LEFT JOIN (SELECT user_id, sum(amount) AS amount FROM holds GROUP BY user_id) h USING (user_id)
WHERE a.opening_balance + coalesce(l.amount, 0) <> a.balance
    OR coalesce(l.owed, 0) <> a.debt OR coalesce(h.amount, 0) <> a.held OR a.balance < 0
ORDER BY a.user_id
