SELECT a.user_id,
    a.balance - a.debt - a.held + CASE WHEN a.held > 0 THEN (
        SELECT coalesce(sum(h.amount), 0)::int8 FROM holds h WHERE h.user_id = a.user_id AND h.arena_id = %(arena_id)s
    ) ELSE 0 END,
    a.debt > 0 AND a.balance > 0
FROM accounts a
WHERE a.user_id = ANY (%(users)s::text[])
