-- What shmcache keeps beside the tables of the AutoGPT Platform. Theirs are as they were, but for two triggers that tell
-- of changed balances; DROP SCHEMA shmcache CASCADE takes all of it away again. Identifiers are text, as they are there.

CREATE TABLE database_identity (identity uuid NOT NULL DEFAULT gen_random_uuid());
INSERT INTO database_identity DEFAULT VALUES;

CREATE TABLE checkpoints (
    arena_id uuid NOT NULL,
    ring text NOT NULL,
    epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (arena_id, ring)
);

CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    arena_id uuid NOT NULL,
    ring text NOT NULL,
    sequence bigint NOT NULL,
    kind integer NOT NULL,
    payload bytea NOT NULL,
    error text NOT NULL,
    sqlstate text,
    created_at timestamptz NOT NULL DEFAULT now(),
    intact boolean NOT NULL DEFAULT true,
    tries integer NOT NULL DEFAULT 1,
    last_tried_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (arena_id, ring, sequence)
);

-- Their rows have no count of moves and keep milliseconds only. `status` is what we wrote last.
CREATE TABLE graph_execution_details (
    id text PRIMARY KEY,
    status text NOT NULL,
    moves integer NOT NULL DEFAULT 0,
    inputs jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE TABLE node_execution_details (
    id text PRIMARY KEY,
    status text NOT NULL,
    moves integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL
);

-- Which output an input came from. `input_id` is the id of the input's row.
CREATE TABLE input_sources (
    input_id text PRIMARY KEY,
    source_execution_id text NOT NULL,
    source_ordinal integer NOT NULL
);

CREATE TABLE account_details (
    user_id text PRIMARY KEY,
    opening_balance bigint NOT NULL,
    execution_count bigint NOT NULL DEFAULT 0,
    debt bigint NOT NULL DEFAULT 0 CHECK (debt >= 0),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    low_noticed boolean NOT NULL DEFAULT false
);

CREATE TABLE holds (
    transaction_key text PRIMARY KEY,
    user_id text NOT NULL REFERENCES account_details,
    amount bigint NOT NULL CHECK (amount >= 0),
    node_execution_id text NOT NULL,
    graph_execution_id text NOT NULL,
    arena_id uuid,
    owner_pid integer NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX holds_of_user ON holds (user_id);
CREATE INDEX holds_of_graph_execution ON holds (graph_execution_id);
CREATE INDEX holds_of_arena ON holds (arena_id);

CREATE TABLE notices (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('low_balance', 'insufficient_funds', 'top_up')),
    user_id text NOT NULL REFERENCES account_details,
    graph_id text,
    graph_execution_id text,
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
CREATE UNIQUE INDEX notices_insufficient_once ON notices (user_id, coalesce(graph_id, ''))
    WHERE kind = 'insufficient_funds' AND NOT over;
CREATE UNIQUE INDEX notices_top_up_once ON notices (user_id) WHERE kind = 'top_up' AND delivered_at IS NULL;

CREATE FUNCTION status_rank(status text) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE status
    WHEN 'INCOMPLETE' THEN 0 WHEN 'QUEUED' THEN 1 WHEN 'RUNNING' THEN 2 WHEN 'REVIEW' THEN 3 WHEN 'TERMINATED' THEN 4
    ELSE 5
END;

-- The id of a row that we write: the same for the same thing, so that writing it twice is writing it once.
CREATE FUNCTION row_id(kind text, owner text, place text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(encode(sha256(convert_to(kind || ' ' || owner || ' ' || place, 'UTF8')), 'hex'), 32)::uuid::text;

CREATE FUNCTION json_object_or_empty(value jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE jsonb_typeof(value) WHEN 'object' THEN value ELSE '{}' END;

-- The same things under our own names, for reading. A row of ours in their ledger says so in its metadata; what an
-- account had when we first saw it is no movement of ours.
CREATE VIEW graphs AS SELECT id, version, coalesce(name, '') AS name FROM "AgentGraph";

CREATE VIEW nodes AS
SELECT id, "agentGraphId" AS graph_id, "agentGraphVersion" AS graph_version, "agentBlockId" AS block_id,
    coalesce(metadata->'shmcache'->>'name', metadata->>'customized_name', id) AS name
FROM "AgentNode";

CREATE VIEW graph_executions AS
SELECT g.id, g."agentGraphId" AS graph_id, g."userId" AS user_id, g."executionStatus"::text AS status,
    coalesce(d.inputs, '{}') AS inputs, coalesce(extract(epoch FROM d.created_at), extract(epoch FROM g."createdAt"))
    AS created_at, g."startedAt" AS started_at, g."endedAt" AS ended_at, json_object_or_empty(g.stats) AS stats,
    coalesce(d.moves, 0) AS moves, g."agentGraphVersion" AS graph_version, g."agentPresetId" AS preset_id
FROM "AgentGraphExecution" g LEFT JOIN graph_execution_details d ON d.id = g.id;

CREATE VIEW node_executions AS
SELECT e.id, e."agentGraphExecutionId" AS graph_execution_id, e."agentNodeId" AS node_id,
    e."executionStatus"::text AS status, coalesce(extract(epoch FROM d.created_at), extract(epoch FROM e."addedTime"))
    AS created_at, e."queuedTime" AS queued_at, e."startedTime" AS started_at, e."endedTime" AS ended_at,
    json_object_or_empty(e.stats) AS stats, coalesce(d.moves, 0) AS moves
FROM "AgentNodeExecution" e LEFT JOIN node_execution_details d ON d.id = e.id;

CREATE VIEW node_execution_inputs AS
SELECT i."referencedByInputExecId" AS node_execution_id, i.name, coalesce(i.data, 'null') AS value, i.time,
    s.source_execution_id, s.source_ordinal
FROM "AgentNodeExecutionInputOutput" i LEFT JOIN input_sources s ON s.input_id = i.id
WHERE i."referencedByInputExecId" IS NOT NULL;

CREATE VIEW node_execution_outputs AS
SELECT o."referencedByOutputExecId" AS node_execution_id,
    (row_number() OVER (PARTITION BY o."referencedByOutputExecId" ORDER BY o.time, o.id))::integer - 1 AS ordinal,
    o.name, coalesce(o.data, 'null') AS value, o.time
FROM "AgentNodeExecutionInputOutput" o
WHERE o."referencedByOutputExecId" IS NOT NULL;

CREATE VIEW accounts AS
SELECT b."userId" AS user_id, d.opening_balance, b.balance::bigint AS balance, d.execution_count, d.debt, d.held,
    d.low_noticed
FROM "UserBalance" b JOIN account_details d ON d.user_id = b."userId";

CREATE VIEW ledger AS
SELECT t."transactionKey" AS transaction_key, t."userId" AS user_id, t.amount::bigint AS amount,
    t."runningBalance"::bigint AS running_balance,
    coalesce(t.metadata->'shmcache'->>'reason', lower(t.type::text)) AS reason,
    CASE WHEN t.metadata ? 'shmcache' THEN t.metadata->>'node_exec_id' END AS node_execution_id,
    t.metadata->>'graph_exec_id' AS graph_execution_id,
    t.metadata, t."createdAt" AS created_at, coalesce((t.metadata->'shmcache'->>'owed')::bigint, 0) AS owed
FROM "CreditTransaction" t
WHERE t."isActive" AND t."transactionKey" <> 'shmcache-opening-balance';

-- A node execution as the clients hand it out, with its inputs and outputs.
CREATE VIEW node_execution_records AS
SELECT
    e.id, e."agentGraphExecutionId" AS graph_execution_id, e."agentNodeId" AS node_id, n."agentBlockId" AS block_id,
    g."userId" AS user_id, e."executionStatus"::text AS status,
    (SELECT coalesce(jsonb_object_agg(i.name, coalesce(i.data, 'null') ORDER BY i.time, i.id), '{}')
        FROM "AgentNodeExecutionInputOutput" i WHERE i."referencedByInputExecId" = e.id)
        || json_object_or_empty(e."executionData") AS inputs,
    (SELECT coalesce(jsonb_object_agg(i.name, jsonb_build_array(s.source_execution_id, s.source_ordinal)), '{}')
        FROM "AgentNodeExecutionInputOutput" i JOIN input_sources s ON s.input_id = i.id
        WHERE i."referencedByInputExecId" = e.id) AS sources,
    (SELECT coalesce(jsonb_agg(jsonb_build_array(o.name, coalesce(o.data, 'null')) ORDER BY o.time, o.id), '[]')
        FROM "AgentNodeExecutionInputOutput" o WHERE o."referencedByOutputExecId" = e.id) AS outputs,
    coalesce(extract(epoch FROM d.created_at), extract(epoch FROM e."addedTime")) AS created_at,
    extract(epoch FROM e."queuedTime") AS queued_at, extract(epoch FROM e."startedTime") AS started_at,
    extract(epoch FROM e."endedTime") AS ended_at, json_object_or_empty(e.stats) AS stats, coalesce(d.moves, 0) AS moves
FROM "AgentNodeExecution" e
JOIN "AgentNode" n ON n.id = e."agentNodeId"
JOIN "AgentGraphExecution" g ON g.id = e."agentGraphExecutionId"
LEFT JOIN node_execution_details d ON d.id = e.id;

-- Every account of theirs has details of ours, those to come too.
INSERT INTO account_details (user_id, opening_balance)
SELECT b."userId", b.balance - coalesce(l.amount, 0)
FROM "UserBalance" b LEFT JOIN (SELECT user_id, sum(amount) AS amount FROM ledger GROUP BY user_id) l
    ON l.user_id = b."userId";

CREATE FUNCTION add_account_details() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO account_details (user_id, opening_balance)
    SELECT NEW."userId", NEW.balance - coalesce((SELECT sum(l.amount) FROM ledger l WHERE l.user_id = NEW."userId"), 0)
    ON CONFLICT (user_id) DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER shmcache_account_opened AFTER INSERT ON "UserBalance"
    FOR EACH ROW EXECUTE FUNCTION add_account_details();

-- Tell every host whose account changed, and who made the change: 200 users a message (a payload has 8000 bytes).
CREATE FUNCTION tell_of(users text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('shmcache_accounts', coalesce(current_setting('shmcache.origin', true), '') || ' ' || message)
    FROM (
        SELECT string_agg(user_id, ',') AS message
        FROM unnest(users) WITH ORDINALITY AS given (user_id, place)
        GROUP BY (place - 1) / 200
    ) AS messages;
END
$$;

CREATE FUNCTION tell_of_balances() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM tell_of((
        SELECT array_agg(after."userId") FROM changed_after after JOIN changed_before before USING ("userId")
        WHERE after.balance <> before.balance
    ));
    UPDATE notices SET over = true
    FROM changed_after after JOIN changed_before before USING ("userId")
    WHERE notices.user_id = after."userId" AND after.balance > before.balance
        AND notices.kind = 'insufficient_funds' AND NOT notices.over;
    RETURN NULL;
END
$$;
CREATE TRIGGER shmcache_balances_changed AFTER UPDATE ON "UserBalance"
    REFERENCING OLD TABLE AS changed_before NEW TABLE AS changed_after
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_balances();

CREATE FUNCTION tell_of_details() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell_of((
        SELECT array_agg(user_id) FROM changed_after after JOIN changed_before before USING (user_id)
        WHERE (after.debt, after.held) IS DISTINCT FROM (before.debt, before.held)
    ));
    RETURN NULL;
END
$$;
CREATE TRIGGER account_details_changed AFTER UPDATE ON account_details
    REFERENCING OLD TABLE AS changed_before NEW TABLE AS changed_after
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_details();

-- Whoever changes a balance finds our tables and theirs, whatever its own search path is.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['add_account_details()', 'tell_of(text[])', 'tell_of_balances()', 'tell_of_details()']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = shmcache, %I, pg_temp',
            name, current_setting('shmcache.platform_schema'));
    END LOOP;
END
$$;
