SELECT id, arena_id, ring, sequence, kind, octet_length(payload), intact, error, sqlstate, created_at, tries, last_tried_at
FROM dead_letters
WHERE (%(ring)s::text IS NULL OR ring = %(ring)s) AND id > %(after)s
ORDER BY id
LIMIT %(limit)s
