SELECT graph_key(id, version), graph_digest(id, version) FROM "AgentGraph"
WHERE graph_key(id, version) = ANY (%(ids)s::text[])
