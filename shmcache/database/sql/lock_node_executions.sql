SELECT pg_advisory_xact_lock(hashtextextended(%(graph_exec_id)s || %(node_id)s, 0))
