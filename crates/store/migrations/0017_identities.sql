-- Who people are at identity providers (OpenID Connect), and the logins through one that are used up.

CREATE TABLE user_identity (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id BIGINT NOT NULL REFERENCES user_account(id),
    issuer TEXT NOT NULL,                    -- URL of the provider, as its tokens have it
    subject TEXT NOT NULL,                   -- who they are there; what never changes hands
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    UNIQUE (issuer, subject)
);
CREATE INDEX user_identity_by_user ON user_identity (user_id, id);

-- A login is begun in the browser alone; this is how it ends once.
CREATE TABLE oidc_login (
    state_hash TEXT NOT NULL PRIMARY KEY,    -- sha256 of the state
    expires_at BIGINT NOT NULL               -- after this the login is over anyway
);
CREATE INDEX oidc_login_by_expiry ON oidc_login (expires_at);
