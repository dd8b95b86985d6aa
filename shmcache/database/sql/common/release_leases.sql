WITH noted AS (
    UPDATE credit_hosts SET robbed = robbed + 1, lease_until = clock_timestamp() WHERE arena_id = %(arena_id)s
), released AS (
    DELETE FROM credit_leases WHERE arena_id = %(arena_id)s RETURNING user_id::text AS user_id, amount
)
SELECT amount, pg_notify('shmcache_accounts', ' ' || user_id) FROM released
