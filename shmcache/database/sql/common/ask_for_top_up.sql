INSERT INTO notices (id, kind, user_id, balance, amount)
SELECT gen_random_uuid(), 'top_up', a.user_id, a.balance, 0
FROM accounts a, notices asked
WHERE a.user_id = %(user_id)s AND asked.id = %(id)s AND NOT EXISTS (
    SELECT FROM notices t WHERE t.kind = 'top_up' AND t.user_id = a.user_id AND t.delivered_at >= asked.created_at
)
ON CONFLICT DO NOTHING
