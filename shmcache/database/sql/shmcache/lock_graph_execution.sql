SELECT FROM graph_executions WHERE id = %(id)s FOR NO KEY UPDATE
