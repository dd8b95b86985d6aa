INSERT INTO links (graph_id, position, source_node_id, source_name, sink_node_id, sink_name, is_static)
VALUES (%(graph_id)s, %(position)s, %(source_node_id)s, %(source_name)s, %(sink_node_id)s, %(sink_name)s, %(is_static)s)
ON CONFLICT (graph_id, position) DO NOTHING
