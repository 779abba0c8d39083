-- Lanes in order go by the index of what is open in order of seq.
DROP INDEX deliveries_in_order;
ALTER TABLE deliveries DROP COLUMN fifo_seq;
