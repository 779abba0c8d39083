-- How many days an organization keeps its events, where that is less than the deployment does.
ALTER TABLE organizations ADD COLUMN retention_days INTEGER;

-- Organizations that are being removed, how far that is, and those that were: what still comes of them is dropped.
CREATE TABLE removals (
    organization_id BLOB PRIMARY KEY,
    requested_at    INTEGER NOT NULL,
    finished_at     INTEGER,
    events          INTEGER NOT NULL DEFAULT 0,
    deliveries      INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX removals_under_way ON removals (requested_at) WHERE finished_at IS NULL;
