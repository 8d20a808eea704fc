//! Credentials of users: API tokens, what logins gave out, and sessions.
//!
//! The one rule: only the sha256 of a secret is here, and it is looked up by that ([`Store::principal`]), so neither the
//! database nor the time that an answer takes tells anything of it. Where a token was used last is written afterwards, for
//! many requests at once ([`api_keys_used`]).

use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::limits::Limits;
use uuid::Uuid;

use crate::sql::{self, record};
use crate::{Store, Tx, fault, json};

/// What a credential is, and so how it may be shown: a session only as a cookie, everything else only as a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Made on purpose, at `/tokens` or by the operator.
    Token,
    /// Given to a device that somebody let in.
    Device,
    /// Given for a password.
    Password,
    /// A browser's.
    Session,
}

impl Kind {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Device => "device",
            Self::Password => "password",
            Self::Session => "session",
        }
    }
}

/// A credential to be kept.
#[derive(Debug)]
pub struct NewKey<'a> {
    pub user: i64,
    pub workspace: i64,
    pub kind: Kind,
    pub name: &'a str,
    /// Its first characters, for lists.
    pub prefix: &'a str,
    /// sha256 of it, 64 hex digits.
    pub hash: &'a str,
    pub limits: &'a Limits,
    pub default_version: &'a str,
    pub expires_at: Option<Timestamp>,
    /// sha256 of the key that it was made with, when it is to be worthless as soon as that one is.
    pub parent_hash: Option<&'a str>,
}

/// A credential, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: i64,
    pub uuid: String,
    pub user_id: i64,
    pub workspace_id: i64,
    pub workspace_slug: String,
    pub workspace_name: String,
    pub kind: String,
    pub name: String,
    pub prefix: String,
    pub default_version: String,
    pub limits: Limits,
    pub created_at: i64,
    pub updated_at: Option<i64>,
    pub last_used_at: Option<i64>,
    pub starts_at: Option<i64>,
    pub expires_at: Option<i64>,
}

record!(ApiKey {
    id,
    uuid,
    user_id,
    workspace_id,
    workspace_slug,
    workspace_name,
    kind,
    name,
    prefix,
    default_version,
    limits from String,
    created_at,
    updated_at,
    last_used_at,
    starts_at,
    expires_at,
});

impl ApiKey {
    /// Since when its secret is what it is, in microseconds.
    pub fn since(&self) -> i64 {
        self.updated_at.unwrap_or(self.created_at)
    }
}

const COLUMNS: &str =
    "SELECT k.id, k.uuid, k.user_id, k.workspace_id, w.slug AS workspace_slug, w.name AS workspace_name,
        k.kind, k.name, k.prefix, k.default_version, k.limits, k.created_at, k.updated_at, k.last_used_at, k.starts_at, k.expires_at
     FROM api_key k JOIN workspace w ON w.id = k.workspace_id";

impl Store {
    /// A user's tokens that were not revoked, oldest first: those of one workspace, or all. Sessions are none.
    pub async fn api_keys(&self, user: i64, workspace: Option<i64>) -> Result<Vec<ApiKey>, Error> {
        let sql = format!(
            "{COLUMNS} WHERE k.user_id = $1 AND ($2 IS NULL OR k.workspace_id = $2) AND k.kind <> 'session'
                AND k.revoked_at IS NULL ORDER BY k.id"
        );
        sql::query(sql).bind(user).bind(workspace).fetch_all(self.read()).await.map_err(fault)
    }

    /// Every token of the installation that was not revoked, oldest first.
    pub async fn api_keys_of_all(&self) -> Result<Vec<(String, ApiKey)>, Error> {
        let sql = format!("{COLUMNS} WHERE k.kind <> 'session' AND k.revoked_at IS NULL ORDER BY k.id");
        let keys: Vec<ApiKey> = sql::query(sql).fetch_all(self.read()).await.map_err(fault)?;
        let names: Vec<(i64, String)> =
            sql::query("SELECT id, username FROM user_account").fetch_all(self.read()).await.map_err(fault)?;
        let name = |user| names.iter().find(|(id, _)| *id == user).map(|(_, name)| name.clone()).unwrap_or_default();
        Ok(keys.into_iter().map(|key| (name(key.user_id), key)).collect())
    }
}

/// One token that was not revoked. Sessions are none.
pub async fn api_key_get(tx: &mut Tx, id: i64) -> Result<Option<ApiKey>, Error> {
    let sql = format!("{COLUMNS} WHERE k.id = $1 AND k.kind <> 'session' AND k.revoked_at IS NULL");
    sql::query(sql).bind(id).fetch_optional(&mut **tx).await.map_err(fault)
}

/// Keeps a credential, and returns its id.
pub async fn api_key_insert(tx: &mut Tx, new: &NewKey<'_>, now: Timestamp) -> Result<i64, Error> {
    sql::query(
        "INSERT INTO api_key (uuid, workspace_id, user_id, kind, name, prefix, hash, limits, default_version, created_at,
            expires_at, parent_hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING id",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(new.workspace)
    .bind(new.user)
    .bind(new.kind.word())
    .bind(new.name)
    .bind(new.prefix)
    .bind(new.hash)
    .bind(json(new.limits)?)
    .bind(new.default_version)
    .bind(now.micros())
    .bind(new.expires_at.map(Timestamp::micros))
    .bind(new.parent_hash)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}

/// Puts another secret in the place of a token's, which is worthless from then on. The token is used as one that is new:
/// where it was used last is forgotten.
pub async fn api_key_replace(
    tx: &mut Tx,
    id: i64,
    (prefix, hash): (&str, &str),
    default_version: &str,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), Error> {
    sql::query(
        "UPDATE api_key SET prefix = $2, hash = $3, default_version = $4, expires_at = $5, updated_at = $6,
            last_used_at = NULL WHERE id = $1",
    )
    .bind(id)
    .bind(prefix)
    .bind(hash)
    .bind(default_version)
    .bind(expires_at.map(Timestamp::micros))
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Makes a credential worthless. False when it is so already.
pub async fn api_key_revoke(tx: &mut Tx, id: i64, now: Timestamp) -> Result<bool, Error> {
    sql::query("UPDATE api_key SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
        .bind(id)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(|done| done == 1)
        .map_err(fault)
}

/// Ends whatever a user's password gave: their sessions and the tokens of their logins with it.
pub async fn logins_end(tx: &mut Tx, user: i64, now: Timestamp) -> Result<(), Error> {
    sql::query(
        "UPDATE api_key SET revoked_at = $2
         WHERE user_id = $1 AND kind IN ('session', 'password') AND revoked_at IS NULL",
    )
    .bind(user)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Notes when credentials were used last: (id, microseconds).
pub async fn api_keys_used(tx: &mut Tx, used: &[(i64, i64)]) -> Result<(), Error> {
    for (id, at) in used {
        // A secret that was replaced meanwhile was used before it was made.
        sql::query(
            "UPDATE api_key SET last_used_at = $2
             WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2) AND (updated_at IS NULL OR updated_at < $2)",
        )
        .bind(id)
        .bind(at)
        .execute(tx)
        .await
        .map_err(fault)?;
    }
    Ok(())
}

/// Forgets sessions and logins that have been over for longer than `keep`: nothing refers to them but the audit log, which
/// names them by number only.
pub async fn sessions_forget(tx: &mut Tx, keep: Duration, now: Timestamp) -> Result<u64, Error> {
    let before = now.micros() - i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
    sql::query("DELETE FROM api_key WHERE kind = 'session' AND (expires_at < $1 OR revoked_at < $1)")
        .bind(before)
        .execute(tx)
        .await
        .map_err(fault)
}
