SELECT ring, sequence FROM checkpoints WHERE arena_id = %(arena_id)s
