INSERT INTO "AgentGraph" (id, version, name, description, "isActive", "userId")
VALUES (%(id)s, %(version)s, %(name)s, '', true, '00000000-0000-0000-0000-000000000000')
ON CONFLICT (id, version) DO NOTHING
