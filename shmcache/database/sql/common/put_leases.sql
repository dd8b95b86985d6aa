INSERT INTO credit_leases AS mine (user_id, arena_id, amount, version, wanted, wanted_at)
SELECT user_id, %(arena_id)s::uuid, amount, nextval('credit_versions'), wanted, clock_timestamp()
FROM unnest(%(users)s::uuid[], %(amounts)s::int8[], %(wanted)s::int8[]) AS given (user_id, amount, wanted)
ON CONFLICT (user_id, arena_id) DO UPDATE SET
    amount = mine.amount + excluded.amount, version = excluded.version,
    wanted = excluded.wanted, wanted_at = excluded.wanted_at
RETURNING user_id::text, amount, version
