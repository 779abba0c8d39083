-- The schema of the store. The partitions of the four tables that are partitioned by event id, one for each day of
-- ids, are made by the program (see shared/src/store/postgres/partitions.rs).

CREATE TABLE organizations (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    tier text NOT NULL,
    -- Counts the changes to the organization's subscriptions: intake compares it with what its plan was made by.
    subscriptions_version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    name text NOT NULL,
    hint text NOT NULL,
    hash bytea NOT NULL CONSTRAINT api_keys_hash UNIQUE,
    scopes text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_of_organization ON api_keys (organization_id, id);

CREATE TABLE subscriptions (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    builtin text,
    kind text NOT NULL,
    url text,
    secret bytea,
    event_types text[] NOT NULL,
    enabled boolean NOT NULL,
    disabled_reason text,
    description text,
    retry_schedule_seconds integer[],
    timeout_ms integer,
    max_in_flight integer,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    -- When the last open delivery of a deleted one was seen to be cancelled.
    swept_at timestamptz,
    CONSTRAINT subscriptions_kind CHECK (
        kind = 'pull'
        OR (kind = 'push' AND url IS NOT NULL AND secret IS NOT NULL AND retry_schedule_seconds IS NOT NULL
            AND timeout_ms IS NOT NULL AND max_in_flight IS NOT NULL)
    )
);
CREATE INDEX subscriptions_of_organization ON subscriptions (organization_id, id) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX subscriptions_builtin ON subscriptions (organization_id, builtin)
    WHERE builtin IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX subscriptions_to_sweep ON subscriptions (deleted_at) WHERE deleted_at IS NOT NULL AND swept_at IS NULL;

-- The order of intake: an event's seq is its transaction's id, shifted by 18 bits, and its place in the batch. So all that
-- may still commit comes after all that is older than the oldest transaction still open, and readers who stop there
-- skip nothing. (A sequence cannot say so: its numbers are taken in another order than transactions end.) Transaction ids
-- are a server's own: where the database has moved to another server, by a dump, the offset keeps the order growing.
CREATE TABLE intake_order (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    xid_offset bigint NOT NULL DEFAULT 0,
    system_identifier bigint NOT NULL
);
INSERT INTO intake_order (system_identifier) SELECT system_identifier FROM pg_control_system();

CREATE TABLE events (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    seq bigint NOT NULL,
    occurred_at timestamptz,
    received_at timestamptz NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now(),
    type text NOT NULL,
    source text,
    dedup_id text,
    trace text,
    -- As it was sent, byte for byte; that it is JSON was checked on its way in.
    payload text NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX events_in_order ON events (organization_id, seq);

CREATE TABLE deliveries (
    event_id uuid NOT NULL,
    subscription_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    seq bigint NOT NULL,
    -- NULL exactly when the delivery is closed.
    due_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- A worker; the delivery is free once that worker has no living lease.
    lease_owner uuid,
    -- The attempt that succeeded: a first attempt that succeeds needs no row of its own.
    started_at timestamptz,
    duration_ms bigint,
    status_code integer,
    attempts integer NOT NULL DEFAULT 0,
    state text NOT NULL DEFAULT 'pending',
    PRIMARY KEY (event_id, subscription_id)
) PARTITION BY RANGE (event_id);
CREATE INDEX deliveries_due ON deliveries (subscription_id, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_open ON deliveries (organization_id, seq) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_dead ON deliveries (organization_id, seq) WHERE state = 'dead_letter';

-- Failed attempts.
CREATE TABLE attempts (
    event_id uuid NOT NULL,
    subscription_id uuid NOT NULL,
    started_at timestamptz NOT NULL,
    duration_ms bigint NOT NULL,
    number integer NOT NULL,
    status_code integer,
    failure text NOT NULL,
    detail text NOT NULL,
    PRIMARY KEY (event_id, subscription_id, number)
) PARTITION BY RANGE (event_id);

-- Ids that were answered for an event that was there already, and notes of repeats: each counts as one repeat.
CREATE TABLE event_aliases (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    event_id uuid NOT NULL,
    differs boolean NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX event_aliases_of_event ON event_aliases (event_id);

CREATE TABLE dedup_keys (
    organization_id uuid NOT NULL,
    event_id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    digest bytea NOT NULL,
    key text NOT NULL,
    PRIMARY KEY (organization_id, key)
);
CREATE INDEX dedup_keys_expiring ON dedup_keys (expires_at);

CREATE TABLE set_aside (
    id uuid PRIMARY KEY,
    reason text NOT NULL,
    detail text NOT NULL,
    organization_id uuid,
    event_id uuid,
    frame bytea NOT NULL,
    at timestamptz NOT NULL
);

-- Changed every few seconds by every worker: room on the page keeps those updates from growing it.
CREATE TABLE workers (
    id uuid PRIMARY KEY,
    lease_until timestamptz NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200);

-- lz4 is quicker both ways, where the server was built with it.
DO $$
BEGIN
    ALTER TABLE events ALTER COLUMN payload SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR syntax_error THEN
    NULL;
END
$$;
