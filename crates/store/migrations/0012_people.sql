-- Who may use the installation, who belongs to a workspace since when, and who is invited to one.

ALTER TABLE user_account ADD COLUMN disabled_at BIGINT;    -- not null: none of their keys works
CREATE UNIQUE INDEX user_account_by_email ON user_account (email);

ALTER TABLE workspace ADD COLUMN disabled_at BIGINT;       -- not null: no key of it works; its CVMs stay as they are
ALTER TABLE workspace ADD COLUMN created_by BIGINT;        -- its first owner
UPDATE workspace SET created_by =
    (SELECT MIN(m.user_id) FROM workspace_member m WHERE m.workspace_id = workspace.id AND m.role = 'owner');

ALTER TABLE workspace_member ADD COLUMN joined_at BIGINT NOT NULL DEFAULT 0;
UPDATE workspace_member SET joined_at =
    COALESCE((SELECT w.created_at FROM workspace w WHERE w.id = workspace_member.workspace_id), 0);
CREATE INDEX workspace_member_by_user ON workspace_member (user_id, workspace_id);

CREATE TABLE invitation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    email TEXT,                              -- null: whoever has the code, and as many as have it
    role TEXT NOT NULL,                      -- admin | member | reader | owner
    hash TEXT NOT NULL UNIQUE,               -- sha256 of the code
    prefix TEXT NOT NULL,                    -- what a list may show of it
    invited_by BIGINT NOT NULL REFERENCES user_account(id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    uses BIGINT NOT NULL DEFAULT 0,
    accepted_by BIGINT,                      -- of one with an address: the first, who is the only one
    accepted_at BIGINT,
    revoked_at BIGINT
);
CREATE INDEX invitation_by_workspace ON invitation (workspace_id, id);
