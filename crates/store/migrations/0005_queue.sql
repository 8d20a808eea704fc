-- Operations that wait in line for their claims.

-- The operation takes this claim when its turn comes. Never together with `held`.
ALTER TABLE operation_resource ADD COLUMN waiting BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX operation_resource_queue ON operation_resource (kind, resource_id, operation_id) WHERE waiting;

-- Status of the resource when an operation that had waited took its claims; where its undo leads back to. Null for one
-- that did not wait: then it is `status_before`, which stays as it was accepted.
ALTER TABLE operation ADD COLUMN status_claimed TEXT;
