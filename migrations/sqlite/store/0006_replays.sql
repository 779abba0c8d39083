-- How many attempts a delivery had had when it was opened again: its schedule begins anew there.
ALTER TABLE deliveries ADD COLUMN attempts_before INTEGER NOT NULL DEFAULT 0;

-- Deliveries of a subscription that are to be opened again, and how far that is.
CREATE TABLE replays (
    id              BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id),
    subscription_id BLOB NOT NULL,
    since           INTEGER,
    until           INTEGER NOT NULL,
    statuses        TEXT NOT NULL,
    event_types     TEXT NOT NULL,
    state           TEXT NOT NULL,
    -- All events up to this seq have been looked at.
    after_seq       INTEGER NOT NULL,
    looked_at       INTEGER NOT NULL,
    opened          INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX replays_running ON replays (updated_at) WHERE state = 'running';
CREATE INDEX replays_of_subscription ON replays (subscription_id, id);
