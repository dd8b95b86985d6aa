SELECT FROM cancellations WHERE graph_execution_id = %(id)s
