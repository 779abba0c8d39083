-- How webhooks are signed; NULL is HMAC, as before. The public key is shown, where the scheme has one.
-- After a rotation the former secret signs beside the new one for a while.
ALTER TABLE subscriptions
    ADD COLUMN signature_scheme text,
    ADD COLUMN public_key text,
    ADD COLUMN former_secret bytea,
    ADD COLUMN former_scheme text,
    ADD COLUMN former_until timestamptz;
CREATE INDEX subscriptions_with_former ON subscriptions (former_until) WHERE former_until IS NOT NULL;
