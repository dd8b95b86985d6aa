WITH lapsed AS (
    SELECT arena_id FROM credit_hosts
    WHERE lease_until < clock_timestamp() AND arena_id IS DISTINCT FROM %(arena_id)s AND arena_id IN (
        SELECT arena_id FROM credit_leases WHERE user_id = ANY (%(users)s::text[]) AND amount > 0
    )
    FOR UPDATE SKIP LOCKED
), noted AS (
    UPDATE credit_hosts h SET robbed = h.robbed + 1 FROM lapsed WHERE h.arena_id = lapsed.arena_id
)
DELETE FROM credit_leases l USING lapsed WHERE l.arena_id = lapsed.arena_id AND l.user_id = ANY (%(users)s::text[])
