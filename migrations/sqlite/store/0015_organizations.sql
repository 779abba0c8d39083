-- How many days an organization keeps its events, where that is less than the deployment does.
ALTER TABLE organizations ADD COLUMN retention_days INTEGER;

-- Organizations that are being removed, how far that is, and those that were: what still comes of them is dropped.
CREATE TABLE removals (
    organization_id BLOB PRIMARY KEY,
    requested_at    INTEGER NOT NULL,
    finished_at     INTEGER,
    -- When it was looked once more whether anything had come since.
    swept_at        INTEGER,
    events_removed  INTEGER NOT NULL DEFAULT 0,
    rows_removed    INTEGER NOT NULL DEFAULT 0,
    -- All aliases up to this id have been looked at.
    aliases_after   BLOB NOT NULL DEFAULT x'00000000000000000000000000000000'
) STRICT, WITHOUT ROWID;
CREATE INDEX removals_under_way ON removals (requested_at) WHERE swept_at IS NULL;

-- Deleted subscriptions stay for their deliveries: by this they are found when their organization goes.
CREATE INDEX subscriptions_deleted ON subscriptions (organization_id) WHERE deleted_at IS NOT NULL;
