SELECT arena_id::text, lease_until, renewed_at FROM hosts
WHERE lease_until < clock_timestamp() AND NOT made_good
ORDER BY lease_until
