CREATE TABLE database_identity (identity uuid NOT NULL DEFAULT gen_random_uuid());
INSERT INTO database_identity DEFAULT VALUES;

CREATE TABLE graphs (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    starts jsonb NOT NULL
);

CREATE TABLE nodes (
    id uuid PRIMARY KEY,
    graph_id uuid NOT NULL REFERENCES graphs,
    position integer NOT NULL,
    name text NOT NULL,
    block_id text NOT NULL,
    input_default jsonb NOT NULL,
    constants jsonb NOT NULL
);
CREATE INDEX nodes_of_graph ON nodes (graph_id);

CREATE TABLE links (
    graph_id uuid NOT NULL REFERENCES graphs,
    position integer NOT NULL,
    source_node_id uuid NOT NULL REFERENCES nodes,
    source_name text NOT NULL,
    sink_node_id uuid NOT NULL REFERENCES nodes,
    sink_name text NOT NULL,
    is_static boolean NOT NULL,
    PRIMARY KEY (graph_id, position)
);
CREATE INDEX links_into_node ON links (sink_node_id);
CREATE INDEX links_out_of_node ON links (source_node_id);

CREATE TABLE graph_executions (
    id uuid PRIMARY KEY,
    graph_id uuid NOT NULL REFERENCES graphs,
    user_id uuid NOT NULL,
    status text NOT NULL CHECK (status IN
        ('INCOMPLETE', 'QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'TERMINATED', 'REVIEW')),
    inputs jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    stats jsonb NOT NULL
);

CREATE TABLE node_executions (
    id uuid PRIMARY KEY,
    graph_execution_id uuid NOT NULL REFERENCES graph_executions,
    node_id uuid NOT NULL REFERENCES nodes,
    status text NOT NULL CHECK (status IN
        ('INCOMPLETE', 'QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'TERMINATED', 'REVIEW')),
    created_at timestamptz NOT NULL,
    queued_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    stats jsonb NOT NULL
);
CREATE INDEX node_executions_of_graph_execution ON node_executions (graph_execution_id, node_id);

CREATE TABLE node_execution_inputs (
    node_execution_id uuid NOT NULL REFERENCES node_executions,
    name text NOT NULL,
    value jsonb NOT NULL,
    time timestamptz NOT NULL,
    source_execution_id uuid,
    source_ordinal integer,
    PRIMARY KEY (node_execution_id, name)
);

CREATE TABLE node_execution_outputs (
    node_execution_id uuid NOT NULL REFERENCES node_executions,
    ordinal integer NOT NULL,
    name text NOT NULL,
    value jsonb NOT NULL,
    time timestamptz NOT NULL,
    PRIMARY KEY (node_execution_id, ordinal)
);

-- A node execution as the clients hand it out, with its inputs and outputs.
CREATE VIEW node_execution_records AS
SELECT
    e.id, e.graph_execution_id, e.node_id, n.block_id, g.user_id, e.status,
    (SELECT coalesce(jsonb_object_agg(i.name, i.value), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id) AS inputs,
    (SELECT coalesce(jsonb_object_agg(i.name, jsonb_build_array(i.source_execution_id, i.source_ordinal)), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id AND i.source_execution_id IS NOT NULL) AS sources,
    (SELECT coalesce(jsonb_agg(jsonb_build_array(o.name, o.value) ORDER BY o.ordinal), '[]')
        FROM node_execution_outputs o WHERE o.node_execution_id = e.id) AS outputs,
    extract(epoch FROM e.created_at) AS created_at, extract(epoch FROM e.queued_at) AS queued_at,
    extract(epoch FROM e.started_at) AS started_at, extract(epoch FROM e.ended_at) AS ended_at, e.stats
FROM node_executions e
JOIN nodes n ON n.id = e.node_id
JOIN graph_executions g ON g.id = e.graph_execution_id;

CREATE TABLE accounts (
    user_id uuid PRIMARY KEY,
    opening_balance bigint NOT NULL CHECK (opening_balance >= 0),
    balance bigint NOT NULL CHECK (balance >= 0),
    execution_count bigint NOT NULL DEFAULT 0
);

CREATE TABLE ledger (
    transaction_key text PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES accounts,
    amount bigint NOT NULL,
    running_balance bigint NOT NULL,
    reason text NOT NULL,
    node_execution_id uuid,
    graph_execution_id uuid,
    metadata jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX ledger_of_user ON ledger (user_id);

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
    UNIQUE (arena_id, ring, sequence)
);
