-- What each worker has counted of the attempts at a subscription, minute by minute, for an hour: a row is the whole count of one
-- worker, which writes it again while it grows.
CREATE TABLE attempt_minutes (
    subscription_id uuid NOT NULL,
    counter uuid NOT NULL,
    number bigint NOT NULL,
    -- When it was first written.
    at timestamptz NOT NULL DEFAULT now(),
    last_success_at timestamptz,
    last_failure_at timestamptz,
    succeeded bigint NOT NULL,
    failed bigint NOT NULL,
    failures text NOT NULL,
    durations text NOT NULL,
    PRIMARY KEY (subscription_id, counter, number)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.1);
CREATE INDEX attempt_minutes_in_time ON attempt_minutes (at);

-- Kept of those rows when they go.
ALTER TABLE subscriptions
    ADD COLUMN last_success_at timestamptz,
    ADD COLUMN last_failure_at timestamptz;

-- Subscriptions that a worker sends nothing but probes. It counts for as long as that worker's lease lives.
CREATE TABLE open_circuits (
    subscription_id uuid NOT NULL,
    worker uuid NOT NULL,
    since timestamptz NOT NULL,
    next_probe_at timestamptz NOT NULL,
    PRIMARY KEY (subscription_id, worker)
) WITH (fillfactor = 60);
