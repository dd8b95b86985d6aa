-- A host is an arena. Its lease says until when nobody else takes what it owns; it is renewed while a syncer leads there.
CREATE TABLE hosts (
    arena_id uuid PRIMARY KEY,
    lease_until timestamptz NOT NULL,
    renewed_at timestamptz NOT NULL DEFAULT now()
);

-- Which host writes to a graph execution. The token is another, larger one after each taking. A row of the host's that
-- stands on its write ring at `since` or before is of an earlier time, when it was somebody else's or was lost.
CREATE TABLE owners (
    graph_execution_id uuid PRIMARY KEY REFERENCES graph_executions ON DELETE CASCADE,
    arena_id uuid NOT NULL,
    token bigint NOT NULL DEFAULT 1,
    since bigint NOT NULL DEFAULT 0,
    taken_from uuid,
    taken_at timestamptz NOT NULL DEFAULT now()
);

-- How often something was taken from an arena. Who takes changes this row, and so waits for the arena's transaction at
-- hand; every later one of the arena's sees here that it has to look what is still its own.
ALTER TABLE checkpoints ADD COLUMN taken bigint NOT NULL DEFAULT 0;
