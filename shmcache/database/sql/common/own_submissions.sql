SELECT s.graph_execution_id::text FROM submissions s JOIN owners o USING (graph_execution_id)
WHERE o.arena_id = %(arena_id)s ORDER BY s.offered_at LIMIT %(limit)s
