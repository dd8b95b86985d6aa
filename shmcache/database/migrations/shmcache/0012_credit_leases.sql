-- A host's lease on a part of an account's credits: it holds charges against that without asking anybody. Each row is
-- changed only with a version that is larger than all it had, so that what a host has read last is known for sure.
-- balance - debt - credits_reserved() is what nobody has; it does not go below 0 but when others lower the balance.
CREATE SEQUENCE credit_versions;
CREATE TABLE credit_leases (
    user_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    arena_id uuid NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    version bigint NOT NULL,
    wanted bigint NOT NULL DEFAULT 0,
    wanted_at timestamptz,
    PRIMARY KEY (user_id, arena_id)
);
CREATE INDEX credit_leases_of_arena ON credit_leases (arena_id);

-- Until when nobody takes a host's leases. `robbed`: how often some were taken after that; `seen`: of how many of these
-- times the host knows.
CREATE TABLE credit_hosts (
    arena_id uuid PRIMARY KEY,
    lease_until timestamptz NOT NULL,
    robbed bigint NOT NULL DEFAULT 0,
    seen bigint NOT NULL DEFAULT 0
);

-- What of an account's balance is spoken for: leases, and estimates that are held. Those of a host are part of its
-- lease, as long as that is the larger one.
CREATE FUNCTION credits_reserved(account uuid) RETURNS bigint LANGUAGE sql STABLE
RETURN (
    SELECT coalesce(sum(greatest(l.amount, h.amount)), 0)::bigint
    FROM (SELECT arena_id, amount FROM credit_leases WHERE user_id = account) l
    FULL JOIN (
        SELECT arena_id, sum(amount)::bigint AS amount FROM holds WHERE user_id = account GROUP BY arena_id
    ) h USING (arena_id)
);
