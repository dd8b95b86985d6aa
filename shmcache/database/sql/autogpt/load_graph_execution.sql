SELECT id, graph_id, user_id, status, inputs, created_at,
    extract(epoch FROM started_at), extract(epoch FROM ended_at), stats, moves, graph_version, preset_id
FROM graph_executions
WHERE id = %(id)s
