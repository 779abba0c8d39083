-- When an event was erased: what its producer sent is gone then, but for its type.
ALTER TABLE events ADD COLUMN erased_at INTEGER;

-- Ids that are to be erased and were not stored when that was asked: intake stores their events erased.
CREATE TABLE erasures (
    organization_id BLOB NOT NULL,
    id              BLOB NOT NULL,
    expires_at      INTEGER NOT NULL,
    -- When it was last looked whether there is something to erase by now.
    looked_at       INTEGER NOT NULL,
    PRIMARY KEY (id, organization_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX erasures_of_organization ON erasures (organization_id);
CREATE INDEX erasures_to_look_at ON erasures (looked_at);
CREATE INDEX erasures_expiring ON erasures (expires_at);

CREATE INDEX set_aside_of_event ON set_aside (organization_id, event_id) WHERE organization_id IS NOT NULL;
