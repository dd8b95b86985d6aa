UPDATE checkpoints AS mine SET sequence = greatest(mine.sequence, %(sequence)s)
WHERE mine.arena_id = %(arena_id)s AND mine.ring = %(ring)s AND mine.epoch = %(epoch)s
RETURNING (
    SELECT before.sequence FROM checkpoints AS before
    WHERE before.arena_id = mine.arena_id AND before.ring = mine.ring
), mine.taken
