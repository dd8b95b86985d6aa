UPDATE checkpoints SET sequence = %(sequence)s
WHERE arena_id = %(arena_id)s AND ring = %(ring)s AND epoch = %(epoch)s
