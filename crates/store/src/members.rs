//! Who belongs to a workspace, and as what.
//!
//! The one rule: a workspace keeps an owner. What would leave it without one is refused by the transaction that would do
//! it ([`owner_stays`]), so two owners who leave at once do not both leave.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};

use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// Somebody who belongs to a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub user_id: i64,
    pub username: String,
    pub email: String,
    pub role: String,
    pub joined_at: i64,
    /// They were the workspace's first owner.
    pub is_creator: bool,
}

record!(Member { user_id, username, email, role, joined_at, is_creator });

const COLUMNS: &str = "SELECT m.user_id, u.username, u.email, m.role, m.joined_at,
        COALESCE(w.created_by = m.user_id, FALSE) AS is_creator
     FROM workspace_member m JOIN user_account u ON u.id = m.user_id JOIN workspace w ON w.id = m.workspace_id
     WHERE m.workspace_id = $1";

impl Store {
    /// A page of a workspace's members in the order in which they came, and how many there are.
    pub async fn members(&self, workspace: i64, limit: i64, offset: i64) -> Result<(Vec<Member>, i64), Error> {
        let total: i64 = sql::query("SELECT COUNT(*) FROM workspace_member WHERE workspace_id = $1")
            .bind(workspace)
            .fetch_one(self.read())
            .await
            .map_err(fault)?;
        let query = format!("{COLUMNS} ORDER BY m.joined_at, m.user_id LIMIT $2 OFFSET $3");
        let members =
            sql::query(query).bind(workspace).bind(limit).bind(offset).fetch_all(self.read()).await.map_err(fault)?;
        Ok((members, total))
    }

    /// One member of a workspace.
    pub async fn member(&self, workspace: i64, user: i64) -> Result<Option<Member>, Error> {
        let query = format!("{COLUMNS} AND m.user_id = $2");
        sql::query(query).bind(workspace).bind(user).fetch_optional(self.by_key()).await.map_err(fault)
    }
}

/// A user's role in a workspace, as this transaction has it.
pub async fn member_role(tx: &mut Tx, workspace: i64, user: i64) -> Result<Option<String>, Error> {
    sql::query("SELECT role FROM workspace_member WHERE workspace_id = $1 AND user_id = $2")
        .bind(workspace)
        .bind(user)
        .fetch_optional(&mut **tx)
        .await
        .map_err(fault)
}

/// Makes a user a member in this role, or gives one who is a member this role.
pub async fn member_put(tx: &mut Tx, workspace: i64, user: i64, role: &str, now: Timestamp) -> Result<(), Error> {
    sql::query(
        "INSERT INTO workspace_member (workspace_id, user_id, role, joined_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (workspace_id, user_id) DO UPDATE SET role = excluded.role",
    )
    .bind(workspace)
    .bind(user)
    .bind(role)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Takes a member out of a workspace. Their keys for it are worthless from then on, also if they come back.
pub async fn member_remove(tx: &mut Tx, workspace: i64, user: i64, now: Timestamp) -> Result<(), Error> {
    sql::query("DELETE FROM workspace_member WHERE workspace_id = $1 AND user_id = $2")
        .bind(workspace)
        .bind(user)
        .execute(tx)
        .await
        .map_err(fault)?;
    sql::query("UPDATE api_key SET revoked_at = $3 WHERE workspace_id = $1 AND user_id = $2 AND revoked_at IS NULL")
        .bind(workspace)
        .bind(user)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Refuses when the transaction has left a workspace without an owner whose account works.
pub async fn owner_stays(tx: &mut Tx, workspace: i64) -> Result<(), Error> {
    let owners: i64 = sql::query(
        "SELECT COUNT(*) FROM workspace_member m JOIN user_account u ON u.id = m.user_id
         WHERE m.workspace_id = $1 AND m.role = 'owner' AND u.disabled_at IS NULL",
    )
    .bind(workspace)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    if owners > 0 { Ok(()) } else { Err(Error::new(Code::LastOwner, "This is the last owner of the workspace.")) }
}
