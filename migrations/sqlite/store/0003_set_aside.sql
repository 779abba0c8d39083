-- The id of what is set aside is that of its content: what comes again is counted.
ALTER TABLE set_aside ADD COLUMN times INTEGER NOT NULL DEFAULT 1;
CREATE INDEX set_aside_in_order ON set_aside (at, id);

-- Ids that lay too far from their day, and which event each of them is now.
CREATE TABLE former_ids (
    organization_id BLOB NOT NULL,
    id              BLOB NOT NULL,
    event_id        BLOB NOT NULL,
    PRIMARY KEY (organization_id, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX former_ids_by_event ON former_ids (event_id);
