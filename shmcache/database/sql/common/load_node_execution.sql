SELECT * FROM node_execution_records WHERE id = %(id)s
