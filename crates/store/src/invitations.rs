//! Invitations to a workspace.
//!
//! ```text
//!             accepted (one with an address: by the first who has the code)
//!  pending ── revoked  (by a member who may, by a newer one to the same address, or because the inviter left)
//!             expired  (nobody wrote that: the time is over)
//! ```
//!
//! The one rule: only the hash of a code is here, and the row that says who accepted is written by the transaction that
//! makes them a member, so one code with an address makes one member.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// An invitation, without its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    pub id: i64,
    pub workspace_id: i64,
    /// `None`: it may be used by as many as have the code.
    pub email: Option<String>,
    pub role: String,
    /// The beginning of the code.
    pub prefix: String,
    pub inviter_name: String,
    pub inviter_email: String,
    pub created_at: i64,
    pub expires_at: i64,
    pub accepted_at: Option<i64>,
    pub revoked_at: Option<i64>,
}

record!(Invitation {
    id,
    workspace_id,
    email,
    role,
    prefix,
    inviter_name,
    inviter_email,
    created_at,
    expires_at,
    accepted_at,
    revoked_at,
});

impl Invitation {
    /// `pending`, `accepted`, `revoked` or `expired`.
    pub fn status(&self, now: Timestamp) -> &'static str {
        match (self.accepted_at, self.revoked_at) {
            (Some(_), _) => "accepted",
            (None, Some(_)) => "revoked",
            (None, None) if self.expires_at <= now.micros() => "expired",
            (None, None) => "pending",
        }
    }
}

const COLUMNS: &str = "SELECT i.id, i.workspace_id, i.email, i.role, i.prefix, u.username AS inviter_name,
        u.email AS inviter_email, i.created_at, i.expires_at, i.accepted_at, i.revoked_at
     FROM invitation i JOIN user_account u ON u.id = i.invited_by";

/// What a new invitation is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewInvitation<'a> {
    pub workspace: i64,
    pub email: Option<&'a str>,
    pub role: &'a str,
    /// sha256 of the code, 64 hex digits.
    pub hash: &'a str,
    pub prefix: &'a str,
    pub invited_by: i64,
    pub expires_at: Timestamp,
}

impl Store {
    /// A page of a workspace's invitations, the newest first, and how many there are.
    pub async fn invitations(&self, workspace: i64, limit: i64, offset: i64) -> Result<(Vec<Invitation>, i64), Error> {
        let total: i64 = sql::query("SELECT COUNT(*) FROM invitation WHERE workspace_id = $1")
            .bind(workspace)
            .fetch_one(self.read())
            .await
            .map_err(fault)?;
        let query = format!("{COLUMNS} WHERE i.workspace_id = $1 ORDER BY i.id DESC LIMIT $2 OFFSET $3");
        let rows =
            sql::query(query).bind(workspace).bind(limit).bind(offset).fetch_all(self.read()).await.map_err(fault)?;
        Ok((rows, total))
    }
}

/// Writes an invitation. Another one to the same address that is still open is revoked.
pub async fn invitation_create(tx: &mut Tx, new: NewInvitation<'_>, now: Timestamp) -> Result<i64, Error> {
    sql::query(
        "UPDATE invitation SET revoked_at = $3
         WHERE workspace_id = $1 AND email = $2 AND accepted_at IS NULL AND revoked_at IS NULL",
    )
    .bind(new.workspace)
    .bind(new.email)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    sql::query(
        "INSERT INTO invitation (workspace_id, email, role, hash, prefix, invited_by, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
    )
    .bind(new.workspace)
    .bind(new.email)
    .bind(new.role)
    .bind(new.hash)
    .bind(new.prefix)
    .bind(new.invited_by)
    .bind(now.micros())
    .bind(new.expires_at.micros())
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}

/// The invitation whose code has this sha256, as this transaction has it.
pub async fn invitation_with(tx: &mut Tx, hash: &str) -> Result<Option<Invitation>, Error> {
    let query = format!("{COLUMNS} WHERE i.hash = $1");
    sql::query(query).bind(hash).fetch_optional(&mut **tx).await.map_err(fault)
}

/// One invitation of a workspace, as this transaction has it.
pub async fn invitation_of(tx: &mut Tx, workspace: i64, id: i64) -> Result<Option<Invitation>, Error> {
    let query = format!("{COLUMNS} WHERE i.workspace_id = $1 AND i.id = $2");
    let query = sql::query(query).bind(workspace).bind(id);
    query.fetch_optional(&mut **tx).await.map_err(fault)
}

/// Notes that a user came with an invitation. One with an address is over with that.
pub async fn invitation_use(tx: &mut Tx, id: i64, user: i64, now: Timestamp) -> Result<(), Error> {
    sql::query(
        "UPDATE invitation SET uses = uses + 1,
            accepted_by = CASE WHEN email IS NULL THEN NULL ELSE $2 END,
            accepted_at = CASE WHEN email IS NULL THEN NULL ELSE $3 END
         WHERE id = $1",
    )
    .bind(id)
    .bind(user)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Makes a code worthless.
pub async fn invitation_revoke(tx: &mut Tx, id: i64, now: Timestamp) -> Result<(), Error> {
    sql::query("UPDATE invitation SET revoked_at = $2 WHERE id = $1")
        .bind(id)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Makes the open codes worthless that a user gave out, in one workspace or with `None` in all, because they may not
/// invite any more.
pub async fn invitations_revoke_by(
    tx: &mut Tx,
    workspace: Option<i64>,
    inviter: i64,
    now: Timestamp,
) -> Result<(), Error> {
    sql::query(
        "UPDATE invitation SET revoked_at = $3 WHERE invited_by = $2 AND workspace_id = COALESCE($1, workspace_id)
            AND accepted_at IS NULL AND revoked_at IS NULL",
    )
    .bind(workspace)
    .bind(inviter)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}
