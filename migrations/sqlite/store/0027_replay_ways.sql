-- By which way a replay comes by its events, and where on it it is. Of what an older version made that is found out later.

-- Events from this seq on were stored after it was made.
ALTER TABLE replays ADD COLUMN before_seq INTEGER;
-- In order of intake, by dead letters, or by time; NULL until workers begin.
ALTER TABLE replays ADD COLUMN walk TEXT;
-- Seqs, or, by time, milliseconds.
ALTER TABLE replays ADD COLUMN first_place INTEGER;
ALTER TABLE replays ADD COLUMN last_place INTEGER;
-- By time: all events accepted under ids up to this one have been looked at.
ALTER TABLE replays ADD COLUMN after_id BLOB;
-- When it is next to get on: then it is its turn, after those who wait longer.
ALTER TABLE replays ADD COLUMN turn_at INTEGER NOT NULL DEFAULT 0;
