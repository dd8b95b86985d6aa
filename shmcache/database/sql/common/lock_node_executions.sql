SELECT pg_advisory_xact_lock(hashtextextended(%(graph_exec_id)s::uuid::text || %(node_id)s::uuid::text, 0))
