UPDATE "AgentGraphExecution" SET stats = json_object_or_empty(stats)
    || jsonb_build_object('lost_hosts', coalesce((json_object_or_empty(stats)->>'lost_hosts')::int, 0) + 1)
WHERE id = %(id)s::uuid::text
