-- Events of the system's own, written with what they tell of, and taken in by the worker from here.
CREATE TABLE announcements (
    id              BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    type            TEXT NOT NULL,
    payload         TEXT NOT NULL,
    at              INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Since when a subscription has failed without one success. There is a row while it does.
CREATE TABLE subscription_failures (
    subscription_id BLOB PRIMARY KEY,
    failing_since   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
