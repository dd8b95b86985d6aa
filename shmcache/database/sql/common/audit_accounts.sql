SELECT a.user_id, a.opening_balance, a.balance, a.debt, a.held,
    coalesce(l.amount, 0), coalesce(l.owed, 0), coalesce(h.amount, 0), coalesce(r.reserved, 0)
FROM accounts a
LEFT JOIN (SELECT user_id, sum(amount) AS amount, sum(owed) AS owed FROM ledger GROUP BY user_id) l USING (user_id)
LEFT JOIN (SELECT user_id, sum(amount) AS amount FROM holds GROUP BY user_id) h USING (user_id)
LEFT JOIN (
    SELECT user_id, sum(greatest(leased.amount, held.amount)) AS reserved
    FROM credit_leases leased FULL JOIN (
        SELECT user_id, arena_id, sum(amount) AS amount FROM holds GROUP BY user_id, arena_id
    ) held USING (user_id, arena_id)
    GROUP BY user_id
) r USING (user_id)
WHERE a.opening_balance + coalesce(l.amount, 0) <> a.balance
    OR coalesce(l.owed, 0) <> a.debt OR coalesce(h.amount, 0) <> a.held OR a.balance < 0
    OR (coalesce(r.reserved, 0) > 0 AND r.reserved + a.debt > a.balance)
ORDER BY a.user_id
