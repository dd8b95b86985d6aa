DELETE FROM hosts WHERE lease_until < clock_timestamp() - interval '1 day'
