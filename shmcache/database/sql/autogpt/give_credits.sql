WITH given AS (
    UPDATE credit_leases l SET amount = l.amount - back.amount, version = nextval('credit_versions')
    FROM unnest(%(users)s::text[], %(amounts)s::int8[], %(versions)s::int8[]) AS back (user_id, amount, version)
    WHERE l.user_id = back.user_id AND l.arena_id = %(arena_id)s AND l.version = back.version AND l.amount >= back.amount
    RETURNING l.user_id::text AS user_id
)
SELECT pg_notify('shmcache_accounts', %(arena_id)s || ' ' || user_id) FROM given
