-- The chain over committed events.

-- What an operation said it would change when it was accepted; `diff` is made true by its first step.
ALTER TABLE operation ADD COLUMN diff_accepted TEXT NOT NULL DEFAULT '{}';
UPDATE operation SET diff_accepted = diff;

-- What each event was sealed as. Operation and number stay here to name an event that was removed.
CREATE TABLE event_seal (
    position BIGINT NOT NULL PRIMARY KEY,
    operation_uuid TEXT NOT NULL,
    seq BIGINT NOT NULL,
    leaf TEXT NOT NULL                       -- sha256, in hex
);

-- Signed states of the chain, one per batch.
CREATE TABLE checkpoint (
    last_position BIGINT NOT NULL PRIMARY KEY,
    first_position BIGINT NOT NULL UNIQUE,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL,
    sealed_at BIGINT NOT NULL,
    signature TEXT NOT NULL                  -- Ed25519, in hex
);
