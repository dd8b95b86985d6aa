SELECT arena_id::text, lease_until FROM hosts
WHERE lease_until < clock_timestamp() AND NOT made_good
ORDER BY lease_until
LIMIT 1
FOR UPDATE SKIP LOCKED
