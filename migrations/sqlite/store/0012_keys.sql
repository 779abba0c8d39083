-- Which key took another's place, and when a key was last used: to within minutes, so that it is written rarely.
ALTER TABLE keys ADD COLUMN replaced_by BLOB;
ALTER TABLE keys ADD COLUMN last_used_at INTEGER;
