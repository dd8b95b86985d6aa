SELECT
    g.id, g.name, g.starts,
    (SELECT coalesce(jsonb_agg(jsonb_build_array(n.id, n.name, n.block_id, n.input_default, n.constants)
        ORDER BY n.position), '[]') FROM nodes n WHERE n.graph_id = g.id),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(l.source_node_id, l.source_name, l.sink_node_id, l.sink_name, l.is_static)
        ORDER BY l.position), '[]') FROM links l WHERE l.graph_id = g.id),
    g.version
FROM graphs g
WHERE g.id = (SELECT graph_id FROM nodes WHERE id = %(id)s)
