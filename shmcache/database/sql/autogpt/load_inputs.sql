SELECT id, inputs FROM node_execution_records WHERE id = %(id)s
