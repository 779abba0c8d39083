-- The bucket of each organization with a limit: when it is full again. Nanoseconds since 1970, as an event of the largest limit
-- takes less than a millisecond of it.
CREATE TABLE limit_buckets (
    organization_id BLOB NOT NULL PRIMARY KEY,
    full_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What one node has taken from a bucket, and how much it wants; for as long as it goes on telling.
CREATE TABLE limit_shares (
    organization_id BLOB NOT NULL,
    counter         BLOB NOT NULL,
    spent           INTEGER NOT NULL,
    wanted          REAL NOT NULL,
    took            REAL NOT NULL,
    at              INTEGER NOT NULL,
    PRIMARY KEY (organization_id, counter)
) STRICT, WITHOUT ROWID;

-- Nodes that take events.
CREATE TABLE limit_nodes (
    node    BLOB NOT NULL PRIMARY KEY,
    seen_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What each node has counted of an organization's events, hour by hour.
CREATE TABLE usage_hours (
    organization_id BLOB NOT NULL,
    hour            INTEGER NOT NULL,
    node            BLOB NOT NULL,
    accepted        INTEGER NOT NULL,
    refused         INTEGER NOT NULL,
    PRIMARY KEY (organization_id, hour, node)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_hours_in_time ON usage_hours (hour);
