-- What the deployment knows its secret key by: a value that opens under that key alone. One row, written by the first start.
CREATE TABLE secret_check (
    single INTEGER PRIMARY KEY CHECK (single = 1),
    sealed BLOB NOT NULL
) STRICT;
