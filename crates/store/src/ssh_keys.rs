//! SSH keys of users.
//!
//! The one rule: every statement names the user, so nobody reads or removes another's key. A key is there once per user,
//! whoever adds it how often: the table's unique rule decides, not a look before it.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// A public key of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey {
    pub id: i64,
    pub user_id: i64,
    pub name: String,
    /// One line, as `authorized_keys` has it.
    pub public_key: String,
    /// `SHA256:` and the hash in base64.
    pub fingerprint: String,
    pub key_type: String,
    /// Of an RSA key.
    pub bits: Option<i64>,
    /// The GitHub profile that it was imported from.
    pub github_username: Option<String>,
    /// When that profile was last seen to have it.
    pub last_synced_at: Option<i64>,
    pub created_at: i64,
    pub updated_at: i64,
}

record!(SshKey {
    id,
    user_id,
    name,
    public_key,
    fingerprint,
    key_type,
    bits,
    github_username,
    last_synced_at,
    created_at,
    updated_at,
});

/// A key that is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct NewSshKey<'a> {
    pub name: &'a str,
    pub public_key: &'a str,
    pub fingerprint: &'a str,
    pub key_type: &'a str,
    pub bits: Option<i64>,
    pub github_username: Option<&'a str>,
}

const OF_USER: &str = "SELECT * FROM ssh_key WHERE user_id = $1 ORDER BY id";

impl Store {
    /// The keys of a user, oldest first.
    pub async fn ssh_keys(&self, user: i64) -> Result<Vec<SshKey>, Error> {
        sql::query(OF_USER).bind(user).fetch_all(self.read()).await.map_err(fault)
    }
}

/// The keys of a user, oldest first, as this transaction sees them.
pub async fn ssh_keys_in(tx: &mut Tx, user: i64) -> Result<Vec<SshKey>, Error> {
    sql::query(OF_USER).bind(user).fetch_all(&mut **tx).await.map_err(fault)
}

/// Keeps a key. `None` when the user has it already.
pub async fn ssh_key_insert(
    tx: &mut Tx,
    user: i64,
    new: NewSshKey<'_>,
    now: Timestamp,
) -> Result<Option<SshKey>, Error> {
    sql::query(
        "INSERT INTO ssh_key (user_id, name, public_key, fingerprint, key_type, bits, github_username,
            last_synced_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, CASE WHEN $7 IS NULL THEN NULL ELSE $8 END, $8, $8)
         ON CONFLICT (user_id, fingerprint) DO NOTHING RETURNING *",
    )
    .bind(user)
    .bind(new.name)
    .bind(new.public_key)
    .bind(new.fingerprint)
    .bind(new.key_type)
    .bind(new.bits)
    .bind(new.github_username)
    .bind(now.micros())
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)
}

/// Notes that the profile that a key was imported from still has it.
pub async fn ssh_key_synced(tx: &mut Tx, user: i64, key: i64, now: Timestamp) -> Result<(), Error> {
    sql::query("UPDATE ssh_key SET last_synced_at = $3, updated_at = $3 WHERE id = $1 AND user_id = $2")
        .bind(key)
        .bind(user)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Removes a key of this user. False when they have none of this id.
pub async fn ssh_key_delete(tx: &mut Tx, user: i64, key: i64) -> Result<bool, Error> {
    let gone = sql::query("DELETE FROM ssh_key WHERE id = $1 AND user_id = $2")
        .bind(key)
        .bind(user)
        .execute(tx)
        .await
        .map_err(fault)?;
    Ok(gone == 1)
}
