-- Until when the subscriber of a subscription asked to be left alone, and by which version of the subscription it was sent to.
CREATE TABLE pauses (
    subscription_id uuid PRIMARY KEY REFERENCES subscriptions (id) ON DELETE CASCADE,
    version bigint NOT NULL,
    until timestamptz NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX pauses_in_time ON pauses (until);
