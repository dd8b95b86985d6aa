SELECT r.* FROM node_execution_records r WHERE r.graph_execution_id = %(id)s AND r.id IN (
    SELECT node_execution_id FROM holds WHERE graph_execution_id = %(id)s
)
