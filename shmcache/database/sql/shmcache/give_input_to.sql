INSERT INTO node_execution_inputs (node_execution_id, name, value, time, source_execution_id, source_ordinal)
SELECT id, %(name)s, %(value)s::jsonb, to_timestamp(%(time)s), %(source_id)s, %(source_ordinal)s
FROM node_executions WHERE id = %(id)s AND %(name)s::text IS NOT NULL
ON CONFLICT (node_execution_id, name) DO NOTHING
