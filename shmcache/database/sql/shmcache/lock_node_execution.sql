SELECT id FROM node_executions WHERE id = %(id)s FOR NO KEY UPDATE
