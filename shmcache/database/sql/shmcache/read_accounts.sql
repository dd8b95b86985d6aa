SELECT a.user_id, a.balance - a.debt - a.held + r.own_held, a.debt > 0 AND a.balance > r.reserved,
    a.balance, a.debt, r.reserved, r.leased, r.version, r.own_held, r.elsewhere, r.wanted, r.wanted_by, r.own_wanted
FROM accounts a CROSS JOIN LATERAL (
    SELECT coalesce(sum(greatest(l.amount, h.amount)), 0)::int8 AS reserved,
        coalesce(sum(l.amount) FILTER (WHERE arena_id = %(arena_id)s), 0)::int8 AS leased,
        coalesce(max(l.version) FILTER (WHERE arena_id = %(arena_id)s), 0) AS version,
        coalesce(sum(h.amount) FILTER (WHERE arena_id = %(arena_id)s), 0)::int8 AS own_held,
        coalesce(sum(l.amount) FILTER (WHERE arena_id IS DISTINCT FROM %(arena_id)s), 0)::int8 AS elsewhere,
        coalesce(max(l.wanted) FILTER (WHERE arena_id <> %(arena_id)s), 0) AS wanted,
        min(arena_id::text) FILTER (WHERE arena_id <> %(arena_id)s AND l.wanted > 0) AS wanted_by,
        coalesce(max(l.wanted) FILTER (WHERE arena_id = %(arena_id)s), 0) AS own_wanted
    FROM (
        SELECT c.arena_id, c.amount, c.version,
            CASE WHEN c.wanted_at > clock_timestamp() - interval '5 seconds' THEN c.wanted ELSE 0 END AS wanted
        FROM credit_leases c WHERE c.user_id = a.user_id
    ) l
    FULL JOIN (
        SELECT h.arena_id, sum(h.amount)::int8 AS amount FROM holds h WHERE a.held > 0 AND h.user_id = a.user_id
        GROUP BY h.arena_id
    ) h USING (arena_id)
) r
WHERE a.user_id = ANY (%(users)s::uuid[])
