INSERT INTO "AgentNode" (id, "agentBlockId", "agentGraphId", "agentGraphVersion", "constantInput", metadata, "webhookId")
VALUES (%(id)s, %(block_id)s, %(graph_id)s, %(graph_version)s, %(input_default)s,
    %(metadata)s::jsonb || jsonb_build_object('shmcache', jsonb_strip_nulls(jsonb_build_object(
        'name', %(name)s::text, 'position', %(position)s::int)) || jsonb_build_object('constants', %(constants)s::jsonb)
        || CASE WHEN %(start)s::jsonb IS NULL THEN '{}' ELSE jsonb_build_object('start', %(start)s::jsonb) END),
    %(webhook_id)s)
ON CONFLICT (id) DO NOTHING
