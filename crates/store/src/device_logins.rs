//! Devices that wait to be let in.
//!
//! The one rule: a row gives one credential, once. Whoever turns `approved` into `done` makes it, in the same transaction.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::limits::Limits;

use crate::sql::{self, record};
use crate::{Store, Tx, fault, json};

/// A device that waits, was let in or was turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLogin {
    pub id: i64,
    pub client: String,
    pub client_address: Option<String>,
    /// `pending`, `approved`, `denied` or `done`.
    pub state: String,
    pub interval_s: i64,
    pub asked_at: Option<i64>,
    pub user_id: Option<i64>,
    pub workspace_id: Option<i64>,
    pub limits: Limits,
    pub created_at: i64,
    pub expires_at: i64,
}

record!(DeviceLogin {
    id,
    client,
    client_address,
    state,
    interval_s,
    asked_at,
    user_id,
    workspace_id,
    limits from String,
    created_at,
    expires_at,
});

const COLUMNS: &str = "SELECT id, client, client_address, state, interval_s, asked_at, user_id, workspace_id, limits,
        created_at, expires_at FROM device_login";

impl Store {
    /// The device that shows its user this code, whatever has become of it, until it expires.
    pub async fn device_login_of_user_code(&self, hash: &str, now: Timestamp) -> Result<Option<DeviceLogin>, Error> {
        let sql = format!("{COLUMNS} WHERE user_code_hash = $1 AND expires_at > $2");
        sql::query(sql).bind(hash).bind(now.micros()).fetch_optional(self.read()).await.map_err(fault)
    }

    /// Whether a device has this code. Cheap, for those who have made one up.
    pub async fn device_login_exists(&self, device_hash: &str) -> Result<bool, Error> {
        sql::query("SELECT COUNT(*) FROM device_login WHERE device_hash = $1")
            .bind(device_hash)
            .fetch_one(self.read())
            .await
            .map(|count: i64| count > 0)
            .map_err(fault)
    }
}

/// The device with this code, also one whose time is over.
pub async fn device_login_get(tx: &mut Tx, device_hash: &str) -> Result<Option<DeviceLogin>, Error> {
    let sql = format!("{COLUMNS} WHERE device_hash = $1");
    sql::query(sql).bind(device_hash).fetch_optional(&mut **tx).await.map_err(fault)
}

/// Devices whose time is not over.
pub async fn device_logins_count(tx: &mut Tx, now: Timestamp) -> Result<i64, Error> {
    sql::query("SELECT COUNT(*) FROM device_login WHERE expires_at > $1")
        .bind(now.micros())
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}

/// Keeps a device. False when another one has one of its codes.
pub async fn device_login_insert(
    tx: &mut Tx,
    (device_hash, user_code_hash): (&str, &str),
    client: &str,
    client_address: Option<&str>,
    interval_s: i64,
    (now, expires_at): (Timestamp, Timestamp),
) -> Result<bool, Error> {
    let inserted = sql::query(
        "INSERT INTO device_login (device_hash, user_code_hash, client, client_address, state, interval_s, created_at,
            expires_at)
         VALUES ($1, $2, $3, $4, 'pending', $5, $6, $7)",
    )
    .bind(device_hash)
    .bind(user_code_hash)
    .bind(client)
    .bind(client_address)
    .bind(interval_s)
    .bind(now.micros())
    .bind(expires_at.micros())
    .execute(tx)
    .await;
    match inserted {
        Ok(_) => Ok(true),
        Err(error) if error.is_duplicate() => Ok(false),
        Err(error) => Err(fault(error)),
    }
}

/// Notes that a device asked, and how long it is to wait before it asks again.
pub async fn device_login_asked(tx: &mut Tx, id: i64, interval_s: i64, now: Timestamp) -> Result<(), Error> {
    sql::query("UPDATE device_login SET asked_at = $2, interval_s = $3 WHERE id = $1")
        .bind(id)
        .bind(now.micros())
        .bind(interval_s)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Lets a device in, in the name of a member and within their credential's limits. False when it does not wait any more.
pub async fn device_login_approve(
    tx: &mut Tx,
    id: i64,
    (user, workspace): (i64, i64),
    limits: &Limits,
    now: Timestamp,
) -> Result<bool, Error> {
    sql::query(
        "UPDATE device_login SET state = 'approved', user_id = $2, workspace_id = $3, limits = $4
         WHERE id = $1 AND state = 'pending' AND expires_at > $5",
    )
    .bind(id)
    .bind(user)
    .bind(workspace)
    .bind(json(limits)?)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(|done| done == 1)
    .map_err(fault)
}

/// Turns a device away. False when it does not wait any more.
pub async fn device_login_deny(tx: &mut Tx, id: i64, now: Timestamp) -> Result<bool, Error> {
    sql::query("UPDATE device_login SET state = 'denied' WHERE id = $1 AND state = 'pending' AND expires_at > $2")
        .bind(id)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(|done| done == 1)
        .map_err(fault)
}

/// Uses up an approval. False when that was done before.
pub async fn device_login_done(tx: &mut Tx, id: i64) -> Result<bool, Error> {
    sql::query("UPDATE device_login SET state = 'done' WHERE id = $1 AND state = 'approved'")
        .bind(id)
        .execute(tx)
        .await
        .map(|done| done == 1)
        .map_err(fault)
}

/// Forgets devices whose time was over before `before`.
pub async fn device_logins_forget(tx: &mut Tx, before: Timestamp) -> Result<(), Error> {
    sql::query("DELETE FROM device_login WHERE expires_at < $1")
        .bind(before.micros())
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}
