SELECT set_config('transaction_timeout', %(limit)s, false)
FROM pg_settings
WHERE name = 'transaction_timeout' AND setting = '0'
