INSERT INTO dead_letters (arena_id, ring, sequence, kind, payload, intact, error, sqlstate)
VALUES (%(arena_id)s, %(ring)s, %(sequence)s, %(kind)s, %(payload)s, %(intact)s, %(error)s, %(sqlstate)s)
ON CONFLICT (arena_id, ring, sequence) DO NOTHING
