UPDATE account_details SET execution_count = execution_count + CASE WHEN EXISTS (
    SELECT FROM "AgentNodeExecution" WHERE id = %(node_exec_id)s AND json_object_or_empty(stats) ? 'cost'
) THEN 0 ELSE 1 END
WHERE user_id = %(user_id)s
RETURNING execution_count
