-- When a subscription was last enabled: what was due by then was parked, and goes in order of seq.
ALTER TABLE subscriptions ADD COLUMN enabled_at INTEGER;

-- What is open, in order of seq. That it was due by a certain time is read from the index, too.
CREATE INDEX deliveries_parked ON deliveries (subscription_id, seq, due_at) WHERE due_at IS NOT NULL;
