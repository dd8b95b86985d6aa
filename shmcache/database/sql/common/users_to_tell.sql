SELECT user_id::text FROM notices
WHERE delivered_at IS NULL AND due_at <= now()
GROUP BY user_id
ORDER BY min(due_at)
LIMIT 20
