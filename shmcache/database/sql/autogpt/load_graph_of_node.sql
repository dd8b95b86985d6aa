SELECT
    g.id, coalesce(g.name, ''),
    (SELECT coalesce(jsonb_object_agg(n.id, coalesce(n.metadata->'shmcache'->'start', '{}')), '{}')
        FROM "AgentNode" n WHERE n."agentGraphId" = g.id AND n."agentGraphVersion" = g.version
            AND CASE WHEN n.metadata ? 'shmcache' THEN n.metadata->'shmcache' ? 'start'
                ELSE NOT EXISTS (SELECT FROM "AgentNodeLink" l WHERE l."agentNodeSinkId" = n.id) END),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(
            n.id, coalesce(n.metadata->'shmcache'->>'name', n.metadata->>'customized_name', n.id), n."agentBlockId",
            json_object_or_empty(n."constantInput"), json_object_or_empty(n.metadata->'shmcache'->'constants'),
            json_object_or_empty(n.metadata) - 'shmcache', n."webhookId")
        ORDER BY (n.metadata->'shmcache'->>'position')::int, n.id), '[]')
        FROM "AgentNode" n WHERE n."agentGraphId" = g.id AND n."agentGraphVersion" = g.version),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(
            l."agentNodeSourceId", l."sourceName", l."agentNodeSinkId", l."sinkName", l."isStatic")
        ORDER BY right(l.id, 12), l.id), '[]')
        FROM "AgentNodeLink" l JOIN "AgentNode" n ON n.id = l."agentNodeSourceId"
        WHERE n."agentGraphId" = g.id AND n."agentGraphVersion" = g.version),
    g.version, graph_digest(g.id, g.version)
FROM "AgentGraph" g
WHERE (g.id, g.version) = (SELECT "agentGraphId", "agentGraphVersion" FROM "AgentNode" WHERE id = %(id)s)
