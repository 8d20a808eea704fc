//! Revisions of an app: those of all its CVMs in one list.
//!
//! The one rule: a revision is named by its CVM and its number there, which stay when the operation that asked for it has
//! left by age.

use holdfast_model::error::Error;

use crate::sql::{self, record};
use crate::{Store, fault};

/// A revision of one of an app's CVMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRevision {
    pub vm_id: i64,
    pub vm_uuid: String,
    /// 1, 2, 3 ... within the CVM.
    pub revision: i64,
    /// The CVM's name in this revision.
    pub name: String,
    pub compose_hash: String,
    pub created_at: i64,
    // Of the operation that asked for it, as long as it is here.
    pub operation_type: Option<String>,
    pub trace_id: Option<String>,
    pub user_id: Option<i64>,
    pub username: Option<String>,
}

record!(AppRevision {
    vm_id,
    vm_uuid,
    revision,
    name,
    compose_hash,
    created_at,
    operation_type,
    trace_id,
    user_id,
    username,
});

/// What a revision runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The bytes of app-compose.json.
    pub compose: String,
    /// Ciphertext in hex; gone when the CVM is.
    pub encrypted_env: Option<String>,
    pub user_config: Option<String>,
}

record!(Contents { compose, encrypted_env, user_config });

const REVISIONS: &str = "SELECT r.vm_id, v.uuid AS vm_uuid, r.revision, r.name, r.compose_hash, r.created_at,
        o.operation_type, o.trace_id, o.user_id, o.username
     FROM vm v JOIN vm_revision r ON r.vm_id = v.id LEFT JOIN operation o ON o.id = r.operation_id";

impl Store {
    /// Revisions of an app's CVMs, deleted ones among them, newest first; and how many there are in all.
    pub async fn app_revisions(&self, app_row: i64, limit: i64, offset: i64) -> Result<(Vec<AppRevision>, i64), Error> {
        let mut query = sql::query(REVISIONS);
        query.push(" WHERE v.app_row = ").push_bind(app_row);
        query.push(" ORDER BY r.created_at DESC, r.vm_id DESC, r.revision DESC LIMIT ").push_bind(limit);
        query.push(" OFFSET ").push_bind(offset);
        let rows = query.fetch_all(self.read()).await.map_err(fault)?;
        let total = sql::query("SELECT COUNT(*) FROM vm v JOIN vm_revision r ON r.vm_id = v.id WHERE v.app_row = $1")
            .bind(app_row)
            .fetch_one(self.read())
            .await
            .map_err(fault)?;
        Ok((rows, total))
    }

    pub async fn app_revision(&self, app_row: i64, vm_uuid: &str, revision: i64) -> Result<Option<AppRevision>, Error> {
        let mut query = sql::query(REVISIONS);
        query.push(" WHERE v.app_row = ").push_bind(app_row);
        query.push(" AND v.uuid = ").push_bind(vm_uuid.to_owned()).push(" AND r.revision = ").push_bind(revision);
        query.fetch_optional(self.by_key()).await.map_err(fault)
    }

    pub async fn revision_contents(&self, vm_id: i64, revision: i64) -> Result<Contents, Error> {
        sql::query(
            "SELECT c.content AS compose, r.encrypted_env, r.user_config
             FROM vm_revision r JOIN vm v ON v.id = r.vm_id
             JOIN app_compose c ON c.workspace_id = v.workspace_id AND c.compose_hash = r.compose_hash
             WHERE r.vm_id = $1 AND r.revision = $2",
        )
        .bind(vm_id)
        .bind(revision)
        .fetch_one(self.by_key())
        .await
        .map_err(fault)
    }
}
