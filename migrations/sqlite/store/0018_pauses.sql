-- Until when the subscriber of a subscription asked to be left alone, and by which version of the subscription it was sent to.
CREATE TABLE pauses (
    subscription_id BLOB PRIMARY KEY REFERENCES subscriptions (id) ON DELETE CASCADE,
    version         INTEGER NOT NULL,
    until           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX pauses_in_time ON pauses (until);
