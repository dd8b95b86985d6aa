-- How often an execution's status has moved. Of two rows of one execution, whichever host they come from and in
-- whatever order they arrive, the one with more moves is the newer.
ALTER TABLE graph_executions ADD COLUMN moves integer NOT NULL DEFAULT 0;
ALTER TABLE node_executions ADD COLUMN moves integer NOT NULL DEFAULT 0;

CREATE FUNCTION status_rank(status text) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE status
    WHEN 'INCOMPLETE' THEN 0 WHEN 'QUEUED' THEN 1 WHEN 'RUNNING' THEN 2 WHEN 'REVIEW' THEN 3 WHEN 'TERMINATED' THEN 4
    ELSE 5
END;

CREATE OR REPLACE VIEW node_execution_records AS
SELECT
    e.id, e.graph_execution_id, e.node_id, n.block_id, g.user_id, e.status,
    (SELECT coalesce(jsonb_object_agg(i.name, i.value), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id) AS inputs,
    (SELECT coalesce(jsonb_object_agg(i.name, jsonb_build_array(i.source_execution_id, i.source_ordinal)), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id AND i.source_execution_id IS NOT NULL) AS sources,
    (SELECT coalesce(jsonb_agg(jsonb_build_array(o.name, o.value) ORDER BY o.ordinal), '[]')
        FROM node_execution_outputs o WHERE o.node_execution_id = e.id) AS outputs,
    extract(epoch FROM e.created_at) AS created_at, extract(epoch FROM e.queued_at) AS queued_at,
    extract(epoch FROM e.started_at) AS started_at, extract(epoch FROM e.ended_at) AS ended_at, e.stats, e.moves
FROM node_executions e
JOIN nodes n ON n.id = e.node_id
JOIN graph_executions g ON g.id = e.graph_execution_id;

-- `intact`: the entry's checksum held when it was read from the ring; bytes that it did not hold for are never replayed.
ALTER TABLE dead_letters
    ADD COLUMN intact boolean NOT NULL DEFAULT true,
    ADD COLUMN tries integer NOT NULL DEFAULT 1,
    ADD COLUMN last_tried_at timestamptz NOT NULL DEFAULT now();
