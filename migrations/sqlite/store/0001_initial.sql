-- The embedded store. Ids are the 16 bytes of a UUID, times are milliseconds since 1970 in UTC.

CREATE TABLE organizations (
    id                    BLOB PRIMARY KEY,
    name                  TEXT NOT NULL,
    tier                  TEXT NOT NULL,
    -- Counts the changes to the organization's subscriptions.
    subscriptions_version INTEGER NOT NULL,
    created_at            INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE keys (
    id              BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id),
    name            TEXT NOT NULL,
    hint            TEXT NOT NULL,
    hash            BLOB NOT NULL,
    scopes          TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER,
    revoked_at      INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX keys_by_hash ON keys (hash);
CREATE INDEX keys_by_organization ON keys (organization_id, id);

CREATE TABLE subscriptions (
    id              BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id),
    builtin         TEXT,
    kind            TEXT NOT NULL CHECK (kind IN ('push', 'pull')),
    -- Those of kind push have all of these.
    url             TEXT,
    secret          BLOB,
    retry_schedule  TEXT,
    timeout_ms      INTEGER,
    max_in_flight   INTEGER,
    event_types     TEXT NOT NULL,
    enabled         INTEGER NOT NULL,
    disabled_reason TEXT,
    description     TEXT,
    version         INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    -- A deleted one stays, for its deliveries to be read by.
    deleted_at      INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX subscriptions_in_force ON subscriptions (organization_id, id) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX subscriptions_builtin ON subscriptions (organization_id, builtin)
    WHERE builtin IS NOT NULL AND deleted_at IS NULL;

CREATE TABLE events (
    -- The order of intake: there is one writer, so it is the order of commits too.
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              BLOB NOT NULL,
    organization_id BLOB NOT NULL,
    type            TEXT NOT NULL,
    dedup_id        TEXT,
    source          TEXT,
    occurred_at     INTEGER,
    received_at     INTEGER NOT NULL,
    trace           TEXT,
    -- As it was sent, byte for byte.
    payload         TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_by_id ON events (id);
CREATE INDEX events_by_organization ON events (organization_id, seq);

-- Which event a deduplication key belongs to, while it does.
CREATE TABLE dedup_keys (
    organization_id BLOB NOT NULL,
    key             TEXT NOT NULL,
    event_id        BLOB NOT NULL,
    digest          BLOB NOT NULL,
    expires_at      INTEGER NOT NULL,
    PRIMARY KEY (organization_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX dedup_keys_by_end ON dedup_keys (expires_at);

-- The ids of duplicates, and of notes of repeats: each counts once.
CREATE TABLE event_aliases (
    id              BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    event_id        BLOB NOT NULL,
    differs         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX event_aliases_by_event ON event_aliases (event_id, differs);

-- A worker's lease. A delivery is free if its owner has none that lives.
CREATE TABLE workers (
    id          BLOB PRIMARY KEY,
    lease_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE deliveries (
    event_id        BLOB NOT NULL,
    subscription_id BLOB NOT NULL,
    organization_id BLOB NOT NULL,
    seq             INTEGER NOT NULL,
    state           TEXT NOT NULL,
    attempts        INTEGER NOT NULL,
    -- Null exactly when it is closed.
    due_at          INTEGER,
    lease_owner     BLOB,
    updated_at      INTEGER NOT NULL,
    -- The attempt that succeeded. Those that failed have rows of their own.
    started_at      INTEGER,
    duration_ms     INTEGER,
    status_code     INTEGER,
    PRIMARY KEY (event_id, subscription_id),
    CHECK ((due_at IS NOT NULL) = (state IN ('pending', 'retrying')))
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (subscription_id, due_at, state) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_open ON deliveries (organization_id, seq) WHERE due_at IS NOT NULL;
-- The few that ended otherwise than planned, for lists of them.
CREATE INDEX deliveries_ended ON deliveries (organization_id, seq)
    WHERE state IN ('dead_letter', 'expired', 'acknowledged');

CREATE TABLE attempts (
    event_id        BLOB NOT NULL,
    subscription_id BLOB NOT NULL,
    number          INTEGER NOT NULL,
    started_at      INTEGER NOT NULL,
    duration_ms     INTEGER NOT NULL,
    status_code     INTEGER,
    failure         TEXT NOT NULL,
    detail          TEXT NOT NULL,
    PRIMARY KEY (event_id, subscription_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE set_aside (
    position        INTEGER PRIMARY KEY,
    id              BLOB NOT NULL,
    reason          TEXT NOT NULL,
    detail          TEXT NOT NULL,
    organization_id BLOB,
    event_id        BLOB,
    at              INTEGER NOT NULL,
    frame           BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX set_aside_by_id ON set_aside (id);
