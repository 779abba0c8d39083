-- Lanes in order go by the index of what is open in order of seq. The column fifo_seq is not written any more; it stays for
-- workers of before, which write it.
DROP INDEX deliveries_in_order;
