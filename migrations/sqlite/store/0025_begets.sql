-- Whether an attempt at an event that is not the system's own was among those that failed: if not, what follows is not announced.
-- Of those from before nobody knows, and it is.
ALTER TABLE subscription_failures ADD COLUMN begets INTEGER NOT NULL DEFAULT 1;
