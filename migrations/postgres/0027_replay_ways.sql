-- By which way a replay comes by its events, and where on it it is. What an older version makes says nothing of it, and gets it later.
ALTER TABLE replays
    -- Events from this seq on were stored after it was made.
    ADD COLUMN before_seq bigint,
    -- In order of intake, by dead letters, or by time; NULL until workers begin.
    ADD COLUMN walk text,
    -- Seqs, or, by time, milliseconds since 1970.
    ADD COLUMN first_place bigint,
    ADD COLUMN last_place bigint,
    -- By time: all events accepted under ids up to this one have been looked at.
    ADD COLUMN after_id uuid,
    -- When it is next to get on: then it is its turn, after those who wait longer.
    ADD COLUMN turn_at timestamptz NOT NULL DEFAULT now();
