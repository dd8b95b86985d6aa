SELECT c.graph_execution_id::text
FROM cancellations c JOIN owners o USING (graph_execution_id) JOIN graph_executions g ON g.id = c.graph_execution_id
WHERE o.arena_id = %(arena_id)s AND g.status NOT IN ('COMPLETED', 'FAILED', 'TERMINATED')
