-- What left by age: one row per archive. The newest signed one is where the chain of this database begins.
CREATE TABLE archive (
    last_position BIGINT NOT NULL PRIMARY KEY,
    first_position BIGINT NOT NULL UNIQUE,
    previous_hash TEXT NOT NULL,             -- the chain before first_position, in hex
    hash TEXT NOT NULL,                      -- the chain after last_position
    over_before BIGINT NOT NULL,             -- operations that were over before this moment
    audit_last BIGINT NOT NULL,              -- audit rows up to this one may have left
    ahead TEXT NOT NULL,                     -- JSON list: positions above last_position that left too
    file TEXT NOT NULL,
    archived_at BIGINT NOT NULL,
    sha256 TEXT,                             -- of the lines of the file; null while it is being written
    signature TEXT                           -- Ed25519, in hex; null while it is being written
);
