UPDATE hosts SET lease_until = clock_timestamp() WHERE arena_id = %(arena_id)s AND lease_until > clock_timestamp()
