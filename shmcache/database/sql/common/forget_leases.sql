WITH lost AS (
    SELECT arena_id FROM credit_hosts WHERE lease_until < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED
), noted AS (
    UPDATE credit_hosts h SET robbed = h.robbed + 1 FROM lost WHERE h.arena_id = lost.arena_id AND EXISTS (
        SELECT FROM credit_leases l WHERE l.arena_id = lost.arena_id
    )
)
DELETE FROM credit_leases l USING lost WHERE l.arena_id = lost.arena_id
