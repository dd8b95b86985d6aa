-- What a user owes: charges that were made and could not be paid. What is held for runs whose price comes at their end.
ALTER TABLE accounts
    ADD COLUMN debt bigint NOT NULL DEFAULT 0 CHECK (debt >= 0),
    ADD COLUMN held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    ADD COLUMN low_noticed boolean NOT NULL DEFAULT false;

-- What of a charge was not paid with it: positive where debt was made, negative where debt was paid.
-- opening + sum(amount) = balance and sum(owed) = debt, for every account.
ALTER TABLE ledger ADD COLUMN owed bigint NOT NULL DEFAULT 0;
DROP INDEX ledger_of_user;
CREATE INDEX ledger_of_user ON ledger (user_id, created_at);

-- Estimates that are held until a node execution ends. sum(amount) = accounts.held, for every account.
CREATE TABLE holds (
    transaction_key text PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES accounts,
    amount bigint NOT NULL CHECK (amount >= 0),
    node_execution_id uuid NOT NULL,
    graph_execution_id uuid NOT NULL,
    arena_id uuid,
    owner_pid integer NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX holds_of_user ON holds (user_id);
CREATE INDEX holds_of_graph_execution ON holds (graph_execution_id);
CREATE INDEX holds_of_arena ON holds (arena_id);

-- What a platform is to be told: written with what it tells of, delivered by a charger.
CREATE TABLE notices (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('low_balance', 'insufficient_funds', 'top_up')),
    user_id uuid NOT NULL REFERENCES accounts,
    graph_id uuid,
    graph_execution_id uuid,
    balance bigint NOT NULL,
    amount bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    tries integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    error text,
    over boolean NOT NULL DEFAULT false
);
CREATE INDEX notices_undelivered ON notices (due_at) WHERE delivered_at IS NULL;
-- Once a user and graph, until the account is topped up.
CREATE UNIQUE INDEX notices_insufficient_once
    ON notices (user_id, coalesce(graph_id, '00000000-0000-0000-0000-000000000000'))
    WHERE kind = 'insufficient_funds' AND NOT over;
-- One automatic top-up at a time.
CREATE UNIQUE INDEX notices_top_up_once ON notices (user_id) WHERE kind = 'top_up' AND delivered_at IS NULL;

-- Tell every host whose balance changed, and who made the change: 200 users a message (a payload has 8000 bytes).
CREATE FUNCTION tell_of_accounts() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    PERFORM pg_notify('shmcache_accounts', coalesce(current_setting('shmcache.origin', true), '') || ' ' || users)
    FROM (
        SELECT string_agg(user_id::text, ',') AS users FROM (
            SELECT after.user_id, row_number() OVER () AS place
            FROM changed_after after JOIN changed_before before USING (user_id)
            WHERE (after.balance, after.debt, after.held) IS DISTINCT FROM (before.balance, before.debt, before.held)
        ) AS changed
        GROUP BY place / 200
    ) AS messages;
    IF EXISTS (
        SELECT FROM changed_after after JOIN changed_before before USING (user_id) WHERE after.balance > before.balance
    ) THEN
        UPDATE notices SET over = true
        FROM changed_after after JOIN changed_before before USING (user_id)
        WHERE notices.user_id = after.user_id AND after.balance > before.balance
            AND notices.kind = 'insufficient_funds' AND NOT notices.over;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER accounts_changed AFTER UPDATE ON accounts
    REFERENCING OLD TABLE AS changed_before NEW TABLE AS changed_after
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_accounts();
