SELECT
    n.id, n."agentGraphId", coalesce(n.metadata->'shmcache'->>'name', n.metadata->>'customized_name', n.id), n."agentBlockId",
    json_object_or_empty(n."constantInput"), json_object_or_empty(n.metadata->'shmcache'->'constants'),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(
            l."agentNodeSourceId", l."sourceName", l."agentNodeSinkId", l."sinkName", l."isStatic")
        ORDER BY right(l.id, 12), l.id), '[]') FROM "AgentNodeLink" l WHERE l."agentNodeSinkId" = n.id),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(
            l."agentNodeSourceId", l."sourceName", l."agentNodeSinkId", l."sinkName", l."isStatic")
        ORDER BY right(l.id, 12), l.id), '[]') FROM "AgentNodeLink" l WHERE l."agentNodeSourceId" = n.id),
    n."agentGraphVersion", json_object_or_empty(n.metadata) - 'shmcache', n."webhookId"
FROM "AgentNode" n
WHERE n.id = %(id)s
