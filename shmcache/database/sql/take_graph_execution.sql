WITH taken AS (
    UPDATE owners SET arena_id = %(arena_id)s, token = token + 1, since = %(since)s, taken_from = %(from)s,
        taken_at = clock_timestamp()
    WHERE graph_execution_id = %(id)s AND arena_id = %(from)s AND token = %(token)s
        AND NOT EXISTS (SELECT FROM hosts h WHERE h.arena_id = %(from)s AND h.lease_until > clock_timestamp())
    RETURNING token
)
SELECT token, pg_notify('shmcache_owners', %(from)s::uuid::text || ' ' || %(id)s::uuid::text) FROM taken
