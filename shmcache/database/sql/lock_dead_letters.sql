SELECT id, ring, sequence, kind, payload, intact, arena_id::text
FROM dead_letters
WHERE id = ANY (%(ids)s::int8[])
ORDER BY arena_id, ring DESC, sequence
FOR UPDATE
