SELECT * FROM node_execution_records
WHERE graph_execution_id = %(graph_exec_id)s
    AND (%(node_id)s::text IS NULL OR node_id = %(node_id)s)
    AND (%(block_ids)s::text[] IS NULL OR block_id = ANY (%(block_ids)s))
    AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s))
ORDER BY created_at, id
LIMIT %(limit)s
