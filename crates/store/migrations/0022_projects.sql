-- Projects that are made and deleted, and what belongs to which.

ALTER TABLE project ADD COLUMN deleted_at BIGINT;            -- its rows stay for the operations of its CVMs
-- A name is that of one living project of a workspace.
CREATE UNIQUE INDEX project_by_name ON project (workspace_id, name) WHERE deleted_at IS NULL;

-- An app belongs to one project for ever, and its CVMs with it. Never null.
ALTER TABLE app ADD COLUMN project_id BIGINT REFERENCES project(id);
UPDATE app SET project_id = COALESCE(
    (SELECT MIN(v.project_id) FROM vm v WHERE v.app_row = app.id),
    (SELECT p.id FROM project p WHERE p.workspace_id = app.workspace_id AND p.is_default));
CREATE INDEX vm_by_project ON vm (project_id, deleted_at, id);

-- What was prepared for one project is not there for another.
CREATE TABLE provision_of_project (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    project_id BIGINT NOT NULL REFERENCES project(id),
    app_id TEXT NOT NULL,
    nonce BIGINT NOT NULL,
    compose_hash TEXT NOT NULL,
    request TEXT NOT NULL,                   -- JSON: name, resources, image, node; no secrets
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    UNIQUE (workspace_id, app_id, compose_hash, project_id)
);
INSERT INTO provision_of_project (workspace_id, project_id, app_id, nonce, compose_hash, request, created_at, expires_at)
SELECT v.workspace_id, COALESCE((SELECT a.project_id FROM app a WHERE a.app_id = v.app_id), p.id), v.app_id, v.nonce,
    v.compose_hash, v.request, v.created_at, v.expires_at
FROM provision v JOIN project p ON p.workspace_id = v.workspace_id AND p.is_default;
DROP TABLE provision;
ALTER TABLE provision_of_project RENAME TO provision;
CREATE INDEX provision_by_expiry ON provision (expires_at);

-- Whose an app-compose.json is: the bytes are kept once per workspace, and named by a hash that others may have seen.
CREATE TABLE app_compose_project (
    project_id BIGINT NOT NULL REFERENCES project(id),
    compose_hash TEXT NOT NULL,
    PRIMARY KEY (project_id, compose_hash)
);
INSERT INTO app_compose_project (project_id, compose_hash)
SELECT p.id, c.compose_hash FROM app_compose c JOIN project p ON p.workspace_id = c.workspace_id AND p.is_default;

-- Null for what is about the workspace as a whole, and for what was refused.
ALTER TABLE audit_log ADD COLUMN project_id BIGINT;
UPDATE audit_log SET project_id = COALESCE(
    (SELECT o.project_id FROM operation o WHERE o.id = audit_log.operation_id),
    (SELECT v.project_id FROM vm v WHERE audit_log.target_type = 'vm' AND v.uuid = audit_log.target_id));
CREATE INDEX audit_log_by_project ON audit_log (project_id, at, id);
