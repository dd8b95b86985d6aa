INSERT INTO hosts (arena_id, lease_until) VALUES (%(arena_id)s, clock_timestamp() + %(seconds)s * interval '1 second')
ON CONFLICT (arena_id) DO UPDATE SET lease_until = excluded.lease_until, renewed_at = clock_timestamp(), made_good = false
RETURNING EXISTS (SELECT FROM hosts h WHERE h.lease_until < clock_timestamp() AND NOT h.made_good)
