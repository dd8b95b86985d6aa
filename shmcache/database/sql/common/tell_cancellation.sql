SELECT pg_notify('shmcache_owners', arena_id::text || ' ' || %(id)s::uuid::text || ' cancelled')
FROM owners WHERE graph_execution_id = %(id)s
