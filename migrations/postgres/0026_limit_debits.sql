-- How much more than before a node's last word told, worked out under the lock of its row: its words may come twice at once.
ALTER TABLE limit_shares ADD COLUMN debit bigint NOT NULL DEFAULT 0;
