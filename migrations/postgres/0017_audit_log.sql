-- Who has changed what, and from where. Written with the change, never changed, and forgotten after a while.
CREATE TABLE audit_log (
    id uuid PRIMARY KEY,
    -- NULL is the deployment's own.
    organization_id uuid,
    -- To the millisecond, as it is shown and as a place in the list is told.
    at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    action text NOT NULL,
    actor text NOT NULL,
    key_id uuid,
    target text NOT NULL,
    subscription_id uuid,
    changed text[] NOT NULL,
    reason text,
    request_id text,
    address text
);
CREATE INDEX audit_log_of_organization ON audit_log (organization_id, at, id);
CREATE INDEX audit_log_in_time ON audit_log (at, id);
