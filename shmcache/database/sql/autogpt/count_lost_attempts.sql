UPDATE "AgentNodeExecution" SET stats = json_object_or_empty(stats)
    || jsonb_build_object('lost_attempts', coalesce((json_object_or_empty(stats)->>'lost_attempts')::int, 0) + 1)
WHERE "agentGraphExecutionId" = %(id)s::uuid::text AND "executionStatus" = 'RUNNING'
