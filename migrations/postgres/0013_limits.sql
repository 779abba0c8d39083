-- The bucket of each organization with a limit, which all nodes take from: when it is full again, and since when what was
-- taken last was taken.
CREATE TABLE limit_buckets (
    organization_id uuid PRIMARY KEY,
    full_at timestamptz NOT NULL,
    since timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);

-- What one node has taken from a bucket, and how much it wants; for as long as it goes on telling.
CREATE TABLE limit_shares (
    organization_id uuid NOT NULL,
    counter uuid NOT NULL,
    spent bigint NOT NULL,
    wanted double precision NOT NULL,
    took double precision NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, counter)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);

-- Nodes that take events.
CREATE TABLE limit_nodes (
    node uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What each node has counted of an organization's events, hour by hour.
CREATE TABLE usage_hours (
    organization_id uuid NOT NULL,
    hour bigint NOT NULL,
    node uuid NOT NULL,
    accepted bigint NOT NULL,
    refused bigint NOT NULL,
    PRIMARY KEY (organization_id, hour, node)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.1);
CREATE INDEX usage_hours_in_time ON usage_hours (hour);
