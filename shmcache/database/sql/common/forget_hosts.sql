DELETE FROM hosts WHERE arena_id IN (
    SELECT arena_id FROM hosts WHERE lease_until < clock_timestamp() - interval '1 day' AND made_good FOR UPDATE SKIP LOCKED
)
