-- Each filter of a list of operations is a range of an index in the order of the list.

DROP INDEX operation_by_workspace;           -- operation_by_created serves what it did
CREATE INDEX operation_by_updated ON operation (workspace_id, updated_at, id);
CREATE INDEX operation_by_status ON operation (workspace_id, status, created_at, id);
CREATE INDEX operation_by_type ON operation (workspace_id, operation_type, created_at, id);
CREATE INDEX operation_by_actor ON operation (workspace_id, user_id, created_at, id);
CREATE INDEX operation_by_project ON operation (project_id, created_at, id);
CREATE INDEX operation_by_name ON operation (workspace_id, resource_name, created_at, id);

-- The actor of a request is a user; which key they used is in api_key_id.
UPDATE audit_log SET actor_type = 'user', actor_id =
    COALESCE((SELECT u.uuid FROM user_account u WHERE CAST(u.id AS TEXT) = audit_log.actor_id), actor_id);
ALTER TABLE audit_log ADD COLUMN user_agent TEXT NOT NULL DEFAULT '';

-- An entry names its operation for as long as the entry is kept, which may be longer than the operation is.
ALTER TABLE audit_log ADD COLUMN operation_uuid TEXT;
UPDATE audit_log SET operation_uuid = (SELECT o.uuid FROM operation o WHERE o.id = audit_log.operation_id);

CREATE INDEX audit_log_by_operation_uuid ON audit_log (operation_uuid, at, id);
CREATE INDEX audit_log_by_request ON audit_log (request_id, at, id);
CREATE INDEX audit_log_by_status ON audit_log (workspace_id, status_code, at, id);
CREATE INDEX audit_log_by_actor ON audit_log (workspace_id, actor_id, at, id);
CREATE INDEX audit_log_by_target ON audit_log (workspace_id, target_id, at, id);
