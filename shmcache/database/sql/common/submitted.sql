SELECT graph_execution_id::text FROM submissions WHERE graph_execution_id::text = ANY (%(ids)s)
