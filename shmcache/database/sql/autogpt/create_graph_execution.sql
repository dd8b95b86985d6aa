WITH made AS (
    INSERT INTO "AgentGraphExecution"
        (id, "agentGraphId", "agentGraphVersion", "userId", "executionStatus", "createdAt", stats, "agentPresetId")
    SELECT %(id)s, id, version, %(user_id)s, 'QUEUED', to_timestamp(%(time)s), '{}', %(preset_id)s
    FROM "AgentGraph" WHERE id = %(graph_id)s AND version = %(graph_version)s
    RETURNING id, "agentGraphId", "agentGraphVersion"
)
INSERT INTO graph_execution_details (id, status, inputs, created_at)
SELECT made.id, 'QUEUED', coalesce(%(inputs)s::jsonb, (
        SELECT coalesce(jsonb_object_agg(n.id, coalesce(n.metadata->'shmcache'->'start', '{}')), '{}')
        FROM "AgentNode" n
        WHERE n."agentGraphId" = made."agentGraphId" AND n."agentGraphVersion" = made."agentGraphVersion"
            AND CASE WHEN n.metadata ? 'shmcache' THEN n.metadata->'shmcache' ? 'start'
                ELSE NOT EXISTS (SELECT FROM "AgentNodeLink" l WHERE l."agentNodeSinkId" = n.id) END
    )), to_timestamp(%(time)s)
FROM made
