SELECT min(transaction_key), node_execution_id, reason, count(*) FROM ledger
WHERE node_execution_id IS NOT NULL
GROUP BY node_execution_id, reason
HAVING count(*) > 1
ORDER BY 1
LIMIT 1000
