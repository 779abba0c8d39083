-- What a worker has counted of the attempts at a subscription, minute by minute, for an hour: a row is the whole count of one
-- worker, which writes it again while it grows.
CREATE TABLE attempt_minutes (
    subscription_id BLOB NOT NULL,
    counter         BLOB NOT NULL,
    number          INTEGER NOT NULL,
    -- When it was first written.
    at              INTEGER NOT NULL,
    last_success_at INTEGER,
    last_failure_at INTEGER,
    succeeded       INTEGER NOT NULL,
    failed          INTEGER NOT NULL,
    failures        TEXT NOT NULL,
    durations       TEXT NOT NULL,
    PRIMARY KEY (subscription_id, counter, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX attempt_minutes_in_time ON attempt_minutes (at);

-- Kept of those rows when they go.
ALTER TABLE subscriptions ADD COLUMN last_success_at INTEGER;
ALTER TABLE subscriptions ADD COLUMN last_failure_at INTEGER;

-- Subscriptions that a worker sends nothing but probes. It counts for as long as that worker's lease lives.
CREATE TABLE open_circuits (
    subscription_id BLOB NOT NULL,
    worker          BLOB NOT NULL,
    since           INTEGER NOT NULL,
    next_probe_at   INTEGER NOT NULL,
    PRIMARY KEY (subscription_id, worker)
) STRICT, WITHOUT ROWID;
