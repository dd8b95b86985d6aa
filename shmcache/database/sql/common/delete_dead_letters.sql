DELETE FROM dead_letters WHERE id = ANY (%(ids)s::int8[]) RETURNING id
