SELECT FROM checkpoints WHERE arena_id = %(arena_id)s AND ring = 'write' FOR UPDATE
