//! Tokens that make a node of whoever holds them.
//!
//! The one rule: only the hash of a token is here. It was shown once, when it was made.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// A token, without the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeToken {
    pub id: i64,
    pub name: String,
    pub created_at: i64,
    pub revoked_at: Option<i64>,
    /// Public id and name of the node that uses it.
    pub node_uuid: Option<String>,
    pub node_name: Option<String>,
}

record!(NodeToken { id, name, created_at, revoked_at, node_uuid, node_name });

impl Store {
    /// All tokens, oldest first, revoked ones too.
    pub async fn node_tokens(&self) -> Result<Vec<NodeToken>, Error> {
        sql::query(
            "SELECT t.id, t.name, t.created_at, t.revoked_at, n.uuid AS node_uuid, n.name AS node_name
             FROM node_token t LEFT JOIN node n ON n.token_id = t.id ORDER BY t.id",
        )
        .fetch_all(self.read())
        .await
        .map_err(fault)
    }
}

/// Makes a token worthless, and its node one that takes no VM. False when there is none that could be revoked.
pub async fn node_token_revoke(tx: &mut Tx, token: i64, now: Timestamp) -> Result<bool, Error> {
    let revoked = sql::query("UPDATE node_token SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
        .bind(token)
        .bind(now.micros())
        .execute(tx)
        .await
        .map_err(fault)?;
    sql::query("UPDATE node SET ready = FALSE, reason = 'its token was revoked' WHERE token_id = $1")
        .bind(token)
        .execute(tx)
        .await
        .map_err(fault)?;
    Ok(revoked == 1)
}

/// The node that uses a token.
pub async fn node_of_token(tx: &mut Tx, token: i64) -> Result<Option<i64>, Error> {
    sql::query("SELECT id FROM node WHERE token_id = $1").bind(token).fetch_optional(&mut **tx).await.map_err(fault)
}
