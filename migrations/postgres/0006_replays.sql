-- How many attempts a delivery had had when it was opened again: its schedule begins anew there.
ALTER TABLE deliveries ADD COLUMN attempts_before integer NOT NULL DEFAULT 0;

-- Deliveries of a subscription that are to be opened again, and how far that is.
CREATE TABLE replays (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    subscription_id uuid NOT NULL,
    since timestamptz,
    until timestamptz NOT NULL,
    statuses text[] NOT NULL,
    event_types text[] NOT NULL,
    state text NOT NULL,
    -- All events up to this seq have been looked at.
    after_seq bigint NOT NULL DEFAULT -9223372036854775808,
    looked_at bigint NOT NULL DEFAULT 0,
    opened bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX replays_running ON replays (updated_at) WHERE state = 'running';
CREATE INDEX replays_of_subscription ON replays (subscription_id, id);
