SELECT id, arena_id, ring, sequence, kind, octet_length(payload), intact, error, sqlstate, created_at, tries, last_tried_at,
    payload
FROM dead_letters
WHERE id = %(id)s
