UPDATE hosts SET made_good = true WHERE arena_id = %(arena_id)s
