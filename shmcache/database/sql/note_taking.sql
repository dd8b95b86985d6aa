INSERT INTO checkpoints AS theirs (arena_id, ring, epoch, sequence, taken) VALUES (%(arena_id)s, 'write', 0, 0, 1)
ON CONFLICT (arena_id, ring) DO UPDATE SET taken = theirs.taken + 1
