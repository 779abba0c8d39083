-- What the deployment knows its secret key by: a value that opens under that key alone. One row, written by the first start.
CREATE TABLE secret_check (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    sealed bytea NOT NULL
);
