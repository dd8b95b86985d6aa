UPDATE node_executions SET
    stats = stats || jsonb_build_object('lost_attempts', coalesce((stats->>'lost_attempts')::int, 0) + 1)
WHERE graph_execution_id = %(id)s AND status = 'RUNNING'
