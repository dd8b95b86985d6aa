WITH given AS (
    SELECT id::text AS id, graph_id::text AS graph_id, user_id::text AS user_id, status, inputs::jsonb AS inputs, to_timestamp(created_at) AS created_at,
        to_timestamp(started_at) AS started_at, to_timestamp(ended_at) AS ended_at, stats::jsonb AS stats, moves,
        graph_version, preset_id
    FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::float8[], %s::float8[], %s::float8[],
        %s::text[], %s::int[], %s::int[], %s::text[])
        AS given (id, graph_id, user_id, status, inputs, created_at, started_at, ended_at, stats, moves,
            graph_version, preset_id)
), newer AS (
    INSERT INTO graph_execution_details AS mine (id, status, moves, inputs, created_at)
    SELECT id, status, moves, inputs, created_at FROM given
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, moves = excluded.moves
    WHERE CASE
        WHEN mine.status IN ('COMPLETED', 'FAILED') THEN mine.status = excluded.status
        WHEN excluded.status IN ('COMPLETED', 'FAILED') THEN true
        ELSE (excluded.moves, status_rank(excluded.status)) >= (mine.moves, status_rank(mine.status))
    END
    RETURNING id
)
INSERT INTO "AgentGraphExecution" AS mine (id, "agentGraphId", "agentGraphVersion", "userId", "executionStatus",
    "createdAt", "startedAt", "endedAt", stats, "agentPresetId")
SELECT id, graph_id, graph_version, user_id, status::"AgentExecutionStatus", created_at, started_at, ended_at, stats,
    preset_id
FROM given JOIN newer USING (id)
ON CONFLICT (id) DO UPDATE SET
    "executionStatus" = excluded."executionStatus",
    "startedAt" = least(mine."startedAt", excluded."startedAt"),
    "endedAt" = excluded."endedAt",
    stats = excluded.stats
WHERE mine."executionStatus" NOT IN ('COMPLETED', 'FAILED') OR mine."executionStatus" = excluded."executionStatus"
