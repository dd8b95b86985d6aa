SELECT
    n.id, n.graph_id, n.name, n.block_id, n.input_default, n.constants,
    (SELECT coalesce(jsonb_agg(jsonb_build_array(l.source_node_id, l.source_name, l.sink_node_id, l.sink_name, l.is_static)
        ORDER BY l.position), '[]') FROM links l WHERE l.sink_node_id = n.id),
    (SELECT coalesce(jsonb_agg(jsonb_build_array(l.source_node_id, l.source_name, l.sink_node_id, l.sink_name, l.is_static)
        ORDER BY l.position), '[]') FROM links l WHERE l.source_node_id = n.id),
    1, '{}'::jsonb, NULL
FROM nodes n
WHERE n.id = %(id)s
