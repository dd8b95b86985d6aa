SELECT set_config('synchronous_commit', 'off', true), pg_notify('shmcache_executions', message)
FROM unnest(%(messages)s::text[]) AS given (message)
