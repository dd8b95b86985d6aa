SELECT pg_notify('shmcache_owners', arena_id::text || ' ' || graph_execution_id::text || ' cancelled')
FROM owners WHERE graph_execution_id = %(id)s
