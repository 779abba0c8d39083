-- How many days an organization keeps its events, where that is less than the deployment does.
ALTER TABLE organizations ADD COLUMN retention_days integer;

-- Organizations that are being removed, how far that is, and those that were: what still comes of them is dropped.
CREATE TABLE removals (
    organization_id uuid PRIMARY KEY,
    requested_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    events bigint NOT NULL DEFAULT 0,
    deliveries bigint NOT NULL DEFAULT 0
);
CREATE INDEX removals_under_way ON removals (requested_at) WHERE finished_at IS NULL;
