-- What a webhook's body is (NULL is as before, by Standard Webhooks), static headers, sealed, with their names beside, and
-- what clients note for themselves, a JSON object of texts.
ALTER TABLE subscriptions ADD COLUMN format TEXT;
ALTER TABLE subscriptions ADD COLUMN header_names TEXT;
ALTER TABLE subscriptions ADD COLUMN headers BLOB;
ALTER TABLE subscriptions ADD COLUMN metadata TEXT;

-- Test pushes that the worker has not taken yet: an event of the system's own for one subscription, whatever it asks for.
CREATE TABLE test_pushes (
    id              BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    subscription_id BLOB NOT NULL,
    at              INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
