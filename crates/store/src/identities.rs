//! Who people are at identity providers, and which logins through one are used up.
//!
//! The one rule: somebody is known by issuer and subject, together. One user has such an identity and keeps it, whatever
//! else the provider says of them, until the operator takes it away.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// Who a user is at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// URL of the provider.
    pub issuer: String,
    /// Their name there, which nobody else ever gets.
    pub subject: String,
    pub created_at: i64,
    /// Microseconds; `None`: they have not signed in with it yet.
    pub last_used_at: Option<i64>,
}

record!(Identity { issuer, subject, created_at, last_used_at });

const HOLDER: &str = "SELECT user_id FROM user_identity WHERE issuer = $1 AND subject = $2";

impl Store {
    /// Whose identity this is, whether or not they may sign in.
    pub async fn identity_holder(&self, issuer: &str, subject: &str) -> Result<Option<i64>, Error> {
        sql::query(HOLDER).bind(issuer).bind(subject).fetch_optional(self.by_key()).await.map_err(fault)
    }

    /// A user's identities, oldest first.
    pub async fn identities(&self, user: i64) -> Result<Vec<Identity>, Error> {
        sql::query("SELECT issuer, subject, created_at, last_used_at FROM user_identity WHERE user_id = $1 ORDER BY id")
            .bind(user)
            .fetch_all(self.read())
            .await
            .map_err(fault)
    }
}

/// Whose identity this is, as this transaction has it.
pub async fn identity_holder_in(tx: &mut Tx, issuer: &str, subject: &str) -> Result<Option<i64>, Error> {
    sql::query(HOLDER).bind(issuer).bind(subject).fetch_optional(&mut **tx).await.map_err(fault)
}

/// Gives a user an identity. False when somebody has it.
pub async fn identity_insert(
    tx: &mut Tx,
    user: i64,
    issuer: &str,
    subject: &str,
    now: Timestamp,
) -> Result<bool, Error> {
    sql::query(
        "INSERT INTO user_identity (user_id, issuer, subject, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (issuer, subject) DO NOTHING",
    )
    .bind(user)
    .bind(issuer)
    .bind(subject)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(|done| done == 1)
    .map_err(fault)
}

/// Notes that somebody signed in with an identity.
pub async fn identity_used(tx: &mut Tx, issuer: &str, subject: &str, now: Timestamp) -> Result<(), Error> {
    sql::query("UPDATE user_identity SET last_used_at = $3 WHERE issuer = $1 AND subject = $2")
        .bind(issuer)
        .bind(subject)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Takes the identities away that a user has at one provider, or with `None` at all. Answers how many that were.
pub async fn identities_remove(tx: &mut Tx, user: i64, issuer: Option<&str>) -> Result<u64, Error> {
    sql::query("DELETE FROM user_identity WHERE user_id = $1 AND ($2 IS NULL OR issuer = $2)")
        .bind(user)
        .bind(issuer)
        .execute(tx)
        .await
        .map_err(fault)
}

/// Uses up a login. False when that was done before. Forgets those that are over.
pub async fn oidc_login_take(
    tx: &mut Tx,
    state_hash: &str,
    expires_at: Timestamp,
    now: Timestamp,
) -> Result<bool, Error> {
    sql::query("DELETE FROM oidc_login WHERE expires_at < $1").bind(now.micros()).execute(tx).await.map_err(fault)?;
    sql::query("INSERT INTO oidc_login (state_hash, expires_at) VALUES ($1, $2) ON CONFLICT (state_hash) DO NOTHING")
        .bind(state_hash)
        .bind(expires_at.micros())
        .execute(tx)
        .await
        .map(|done| done == 1)
        .map_err(fault)
}
