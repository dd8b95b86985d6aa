SELECT set_config(name, wanted, true)
FROM pg_settings JOIN (
    VALUES ('idle_in_transaction_session_timeout', %(idle)s::text), ('transaction_timeout', %(limit)s::text)
) AS given (name, wanted) USING (name)
WHERE setting = '0'
