-- How a subscription wants its deliveries; NULL is as before: in no order, at no rate.
ALTER TABLE subscriptions ADD COLUMN rate_limit_per_second INTEGER;
ALTER TABLE subscriptions ADD COLUMN ordering TEXT;

-- The delivery's seq, where its lane is served in that order.
ALTER TABLE deliveries ADD COLUMN fifo_seq INTEGER;
CREATE INDEX deliveries_in_order ON deliveries (subscription_id, fifo_seq)
    WHERE fifo_seq IS NOT NULL AND due_at IS NOT NULL;

-- Which worker alone serves a lane that must act as one. It counts for as long as that worker's lease lives.
CREATE TABLE lanes (
    subscription_id BLOB PRIMARY KEY,
    owner           BLOB NOT NULL
) STRICT, WITHOUT ROWID;
