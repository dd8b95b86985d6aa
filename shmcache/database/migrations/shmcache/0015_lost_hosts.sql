-- Whether what a host had not charged, when its lease ended, has been charged by another. One that lives again may have
-- something anew.
ALTER TABLE hosts ADD COLUMN made_good boolean NOT NULL DEFAULT false;
CREATE INDEX owners_of_arena ON owners (arena_id);
CREATE INDEX owners_taken_from ON owners (taken_from) WHERE taken_from IS NOT NULL;
