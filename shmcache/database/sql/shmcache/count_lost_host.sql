UPDATE graph_executions SET
    stats = stats || jsonb_build_object('lost_hosts', coalesce((stats->>'lost_hosts')::int, 0) + 1)
WHERE id = %(id)s
