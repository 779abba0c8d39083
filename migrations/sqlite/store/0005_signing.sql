-- How webhooks are signed; NULL is HMAC, as before. The public key is shown, where the scheme has one.
-- After a rotation the former secret signs beside the new one for a while.
ALTER TABLE subscriptions ADD COLUMN signature_scheme TEXT;
ALTER TABLE subscriptions ADD COLUMN public_key TEXT;
ALTER TABLE subscriptions ADD COLUMN former_secret BLOB;
ALTER TABLE subscriptions ADD COLUMN former_scheme TEXT;
ALTER TABLE subscriptions ADD COLUMN former_until INTEGER;
