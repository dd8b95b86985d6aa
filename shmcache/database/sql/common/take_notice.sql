SELECT id::text, kind, user_id::text, graph_id::text, graph_execution_id::text, balance, amount FROM notices
WHERE delivered_at IS NULL AND due_at <= now() AND user_id = %(user_id)s
ORDER BY due_at, id
LIMIT 1
