-- Who has changed what, and from where. Written with the change, never changed, and forgotten after a while.
CREATE TABLE audit_log (
    id              BLOB PRIMARY KEY,
    -- NULL is the deployment's own.
    organization_id BLOB,
    at              INTEGER NOT NULL,
    action          TEXT NOT NULL,
    actor           TEXT NOT NULL,
    key_id          BLOB,
    target          TEXT NOT NULL,
    subscription_id BLOB,
    changed         TEXT NOT NULL,
    reason          TEXT,
    request_id      TEXT,
    address         TEXT
) STRICT;
CREATE INDEX audit_log_of_organization ON audit_log (organization_id, at, id);
CREATE INDEX audit_log_in_time ON audit_log (at, id);
