SELECT FROM hosts
WHERE arena_id = %(arena_id)s AND renewed_at = %(renewed_at)s AND lease_until < clock_timestamp() AND NOT made_good
FOR UPDATE SKIP LOCKED
