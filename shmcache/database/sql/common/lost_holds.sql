SELECT h.transaction_key, h.user_id::text, h.node_execution_id::text, h.graph_execution_id::text
FROM holds h JOIN credit_hosts c USING (arena_id)
WHERE c.lease_until < clock_timestamp() - interval '1 day'
ORDER BY h.user_id, h.transaction_key
LIMIT %(limit)s
