-- What a webhook's body is (NULL is as before, by Standard Webhooks), static headers, sealed, with their names beside, and
-- what clients note for themselves, a JSON object of texts.
ALTER TABLE subscriptions
    ADD COLUMN format text,
    ADD COLUMN header_names text[],
    ADD COLUMN headers bytea,
    ADD COLUMN metadata text;

-- Test pushes that no worker has taken yet: an event of the system's own for one subscription, whatever it asks for. A table
-- of its own, which workers of before do not know: to them it would be an event for whoever asks for such.
CREATE TABLE test_pushes (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    subscription_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
