-- The embedded queue: a row is a frame, a commit is a confirm. The one writer gives ids, which only grow while it runs.
CREATE TABLE frames (
    id   INTEGER PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;
