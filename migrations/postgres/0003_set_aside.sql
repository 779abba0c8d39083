-- The id of what is set aside is that of its content: what comes again is counted.
ALTER TABLE set_aside ADD COLUMN times bigint NOT NULL DEFAULT 1;
CREATE INDEX set_aside_in_order ON set_aside (at, id);

-- Ids that lay too far from their day, and which event each of them is now. Not partitioned: no partition takes such an id.
CREATE TABLE former_ids (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    event_id uuid NOT NULL,
    PRIMARY KEY (organization_id, id)
);
CREATE INDEX former_ids_of_event ON former_ids (event_id);
