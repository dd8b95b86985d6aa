UPDATE accounts SET execution_count = execution_count + CASE WHEN EXISTS (
    SELECT FROM node_executions WHERE id = %(node_exec_id)s AND stats ? 'cost'
) THEN 0 ELSE 1 END
WHERE user_id = %(user_id)s
RETURNING execution_count
