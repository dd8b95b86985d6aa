INSERT INTO checkpoints AS mine (arena_id, ring, epoch, sequence) VALUES (%(arena_id)s, %(ring)s, 1, 0)
ON CONFLICT (arena_id, ring) DO UPDATE SET epoch = mine.epoch + 1
RETURNING epoch, sequence
