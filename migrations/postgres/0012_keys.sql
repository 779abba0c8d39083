-- Which key took another's place, and when a key was last used: to within minutes, so that it is written rarely.
ALTER TABLE api_keys
    ADD COLUMN replaced_by uuid,
    ADD COLUMN last_used_at timestamptz;
