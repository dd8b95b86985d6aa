SELECT o.arena_id::text, o.token, coalesce(extract(epoch FROM h.lease_until - clock_timestamp()), 0)::float8
FROM owners o LEFT JOIN hosts h USING (arena_id)
WHERE o.graph_execution_id = %(id)s
