-- Credentials: API tokens with limits, sessions, passwords and device logins.

ALTER TABLE api_key ADD COLUMN kind TEXT NOT NULL DEFAULT 'token';   -- token | device | password | session
ALTER TABLE api_key ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';    -- JSON: scopes, projects, sources; '{}': as its holder
ALTER TABLE api_key ADD COLUMN starts_at BIGINT;                     -- not valid before; null: from the beginning
ALTER TABLE api_key ADD COLUMN updated_at BIGINT;                    -- null: never changed
ALTER TABLE api_key ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';      -- JSON list of words
ALTER TABLE api_key ADD COLUMN parent_hash TEXT;                     -- it is worth no more than the key with this hash
CREATE INDEX api_key_by_user ON api_key (user_id, id);

CREATE TABLE user_password (
    user_id BIGINT NOT NULL PRIMARY KEY REFERENCES user_account(id),
    hash TEXT NOT NULL,                      -- argon2id, in the PHC string format
    changed_at BIGINT NOT NULL
);

-- A device that waits to be let in (RFC 8628). Of both codes only the sha256 is here.
CREATE TABLE device_login (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device_hash TEXT NOT NULL UNIQUE,
    user_code_hash TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,                    -- as it calls itself
    client_address TEXT,
    state TEXT NOT NULL,                     -- pending | approved | denied | done
    interval_s BIGINT NOT NULL,              -- it is to ask no more often than this
    asked_at BIGINT,
    user_id BIGINT REFERENCES user_account(id),
    workspace_id BIGINT REFERENCES workspace(id),
    limits TEXT NOT NULL DEFAULT '{}',       -- of whoever approved it
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX device_login_by_expiry ON device_login (expires_at);
