//! Idempotency keys: a mutation that is sent again with the same key gets its first answer again.
//!
//! The one rule: the key is taken by the transaction that does what the request asks for. So it exists exactly when
//! that was done; the answer's bytes follow, and until they do a repetition is answered from what is there now.
//! An answer that shows a secret is never kept: its transaction notes the id of what it made instead
//! ([`idempotency_created`]), and a repetition is told that.

use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};

use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// How long a key is kept.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A key that a client sent, and what it was sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub key: String,
    /// sha256 of method, path, query, body and the project that is named, 64 hex digits.
    pub request_hash: String,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub request_hash: String,
    /// 0 while the answer's bytes are not there.
    pub status_code: i64,
    pub response: String,
    /// Public id of what was made, when the answer showed a secret once. Then no answer is kept.
    pub created_id: Option<String>,
}

record!(Known { request_hash, status_code, response, created_id });

impl Known {
    /// Refuses a key that was used for something else, and a repetition of what showed a secret once.
    pub fn check(&self, key: &Key) -> Result<(), Error> {
        if self.request_hash != key.request_hash {
            // What else it is told apart by is not the client's.
            let sent = key.key.lines().next().unwrap_or_default();
            let message = format!("The idempotency key \"{sent}\" was used for another request.");
            return Err(Error::new(Code::IdempotencyMismatch, message));
        }
        match &self.created_id {
            Some(id) => {
                Err(Error::new(Code::AlreadyCreated, format!("This request was carried out already: it created {id}.")))
            }
            None => Ok(()),
        }
    }
}

impl Store {
    pub async fn idempotency(&self, workspace: i64, key: &str, now: Timestamp) -> Result<Option<Known>, Error> {
        sql::query(
            "SELECT request_hash, status_code, response, created_id FROM idempotency_key
             WHERE workspace_id = $1 AND key = $2 AND expires_at > $3",
        )
        .bind(workspace)
        .bind(key)
        .bind(now.micros())
        .fetch_optional(self.by_key())
        .await
        .map_err(fault)
    }

    /// Keeps the answer that repetitions get; of one that showed a secret, only its status.
    pub async fn idempotency_answer(
        &self,
        workspace: i64,
        key: &Key,
        status_code: u16,
        response: &str,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        sql::query(
            "UPDATE idempotency_key SET status_code = $4, response = CASE WHEN created_id IS NULL THEN $5 ELSE '' END
             WHERE workspace_id = $1 AND key = $2 AND request_hash = $3 AND status_code = 0",
        )
        .bind(workspace)
        .bind(&key.key)
        .bind(&key.request_hash)
        .bind(i64::from(status_code))
        .bind(response)
        .execute(&mut tx)
        .await
        .map_err(fault)?;
        crate::commit(tx).await
    }
}

/// Takes the key for what this transaction does. False when the same request did it before: then the caller must do
/// nothing and answer with what is there. Fails when the key was used for another request.
pub async fn idempotency_take(tx: &mut Tx, workspace: i64, key: &Key, now: Timestamp) -> Result<bool, Error> {
    sql::query("DELETE FROM idempotency_key WHERE expires_at <= $1")
        .bind(now.micros())
        .execute(tx)
        .await
        .map_err(fault)?;
    let taken = sql::query(
        "INSERT INTO idempotency_key (workspace_id, key, request_hash, status_code, response, created_at, expires_at)
         VALUES ($1, $2, $3, 0, '', $4, $5) ON CONFLICT (workspace_id, key) DO NOTHING",
    )
    .bind(workspace)
    .bind(&key.key)
    .bind(&key.request_hash)
    .bind(now.micros())
    .bind(now.plus(LIFETIME).micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    if taken == 1 {
        return Ok(true);
    }
    let known: Known = sql::query(
        "SELECT request_hash, status_code, response, created_id FROM idempotency_key WHERE workspace_id = $1 AND key = $2",
    )
    .bind(workspace)
    .bind(&key.key)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    known.check(key).map(|()| false)
}

/// Notes what was made under a key by a request whose answer shows a secret once. No answer is ever kept under it, and
/// repetitions are refused naming `id`, also when the first answer never arrived.
pub async fn idempotency_created(tx: &mut Tx, workspace: i64, key: &Key, id: &str) -> Result<(), Error> {
    sql::query("UPDATE idempotency_key SET created_id = $3 WHERE workspace_id = $1 AND key = $2")
        .bind(workspace)
        .bind(&key.key)
        .bind(id)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// The operation that was accepted under a key: its public id.
pub async fn idempotency_operation(tx: &mut Tx, workspace: i64, key: &Key) -> Result<Option<String>, Error> {
    sql::query(
        "SELECT o.uuid FROM idempotency_key k JOIN operation o ON o.id = k.operation_id
         WHERE k.workspace_id = $1 AND k.key = $2",
    )
    .bind(workspace)
    .bind(&key.key)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)
}

/// Notes which operation was accepted under a key.
pub(crate) async fn idempotency_link(tx: &mut Tx, workspace: i64, key: &Key, operation: i64) -> Result<(), Error> {
    sql::query("UPDATE idempotency_key SET operation_id = $3 WHERE workspace_id = $1 AND key = $2")
        .bind(workspace)
        .bind(&key.key)
        .bind(operation)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}
