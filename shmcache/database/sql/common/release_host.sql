UPDATE hosts SET lease_until = clock_timestamp(), made_good = true WHERE arena_id = %(arena_id)s AND lease_until > clock_timestamp()
