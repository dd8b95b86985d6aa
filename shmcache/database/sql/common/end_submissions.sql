WITH ended AS (
    DELETE FROM submissions s USING graph_executions g
    WHERE g.id = s.graph_execution_id AND g.status IN ('COMPLETED', 'FAILED', 'TERMINATED')
    RETURNING s.graph_execution_id
)
DELETE FROM cancellations c USING graph_executions g
WHERE g.id = c.graph_execution_id AND g.status IN ('COMPLETED', 'FAILED', 'TERMINATED')
