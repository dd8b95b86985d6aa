WITH given AS (
    SELECT id::text AS id, graph_execution_id::text AS graph_execution_id, node_id::text AS node_id, status,
        to_timestamp(created_at) AS created_at,
        to_timestamp(queued_at) AS queued_at, to_timestamp(started_at) AS started_at, to_timestamp(ended_at) AS ended_at,
        stats::jsonb AS stats, moves
    FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::float8[], %s::float8[], %s::float8[], %s::float8[],
        %s::text[], %s::int[])
        AS given (id, graph_execution_id, node_id, status, created_at, queued_at, started_at, ended_at, stats, moves)
), newer AS (
    INSERT INTO node_execution_details AS mine (id, status, moves, created_at)
    SELECT id, status, moves, created_at FROM given
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, moves = excluded.moves
    WHERE CASE
        WHEN mine.status IN ('COMPLETED', 'FAILED') THEN mine.status = excluded.status
        WHEN excluded.status IN ('COMPLETED', 'FAILED') THEN true
        ELSE (excluded.moves, status_rank(excluded.status)) >= (mine.moves, status_rank(mine.status))
    END
    RETURNING id
)
INSERT INTO "AgentNodeExecution" AS mine (id, "agentGraphExecutionId", "agentNodeId", "executionStatus",
    "addedTime", "queuedTime", "startedTime", "endedTime", stats)
SELECT id, graph_execution_id, node_id, status::"AgentExecutionStatus", created_at, queued_at, started_at, ended_at,
    stats
FROM given JOIN newer USING (id)
ON CONFLICT (id) DO UPDATE SET
    "executionStatus" = excluded."executionStatus",
    "queuedTime" = excluded."queuedTime",
    "startedTime" = least(mine."startedTime", excluded."startedTime"),
    "endedTime" = excluded."endedTime",
    stats = excluded.stats
WHERE mine."executionStatus" NOT IN ('COMPLETED', 'FAILED') OR mine."executionStatus" = excluded."executionStatus"
