-- Public SSH keys of users, for the CVMs that they make.
CREATE TABLE ssh_key (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id BIGINT NOT NULL REFERENCES user_account(id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    public_key TEXT NOT NULL,                -- one line as authorized_keys has it, without options
    fingerprint TEXT NOT NULL,               -- SHA256:<base64>
    key_type TEXT NOT NULL,                  -- ssh-ed25519, ssh-rsa, ...
    bits BIGINT,                             -- of an RSA key
    github_username TEXT,                    -- of the profile that it was imported from; null: added by hand
    last_synced_at BIGINT,                   -- when that profile was last seen to have it
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (user_id, fingerprint)
);
