WITH moved AS (
    UPDATE checkpoints AS mine SET sequence = greatest(mine.sequence, %(sequence)s)
    WHERE mine.arena_id = %(arena_id)s AND mine.ring = %(ring)s AND mine.epoch = %(epoch)s
    RETURNING mine.arena_id, mine.ring, (
        SELECT before.sequence FROM checkpoints AS before
        WHERE before.arena_id = mine.arena_id AND before.ring = mine.ring
    ) AS sequence, mine.taken
), late AS (
    UPDATE hosts SET made_good = false, renewed_at = clock_timestamp() FROM moved
    WHERE hosts.arena_id = moved.arena_id AND moved.ring = 'write'
        AND (hosts.made_good OR hosts.lease_until < clock_timestamp())
)
SELECT sequence, taken FROM moved
