INSERT INTO "AgentNodeLink" (id, "agentNodeSourceId", "sourceName", "agentNodeSinkId", "sinkName", "isStatic")
-- Its end is the position: links are read in the order of it.
VALUES (left(row_id('link', %(graph_id)s, %(position)s::int::text), 24) || lpad(to_hex(%(position)s::int), 12, '0'),
    %(source_node_id)s, %(source_name)s, %(sink_node_id)s, %(sink_name)s, %(is_static)s)
ON CONFLICT (id) DO NOTHING
