SELECT * FROM node_execution_records
WHERE id = (
    SELECT id FROM node_executions
    WHERE graph_execution_id = %(graph_exec_id)s AND node_id = %(node_id)s
    ORDER BY created_at DESC, id DESC
    LIMIT 1
)
