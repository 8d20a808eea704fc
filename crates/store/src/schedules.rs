//! Deletions that are due at a time: who asked for one, and taking it when its time has come.
//!
//! The one rule: a deletion is taken by the transaction that accepts the operation for it, or finds that none is needed. So
//! it happens once, whatever ends in between, and one that was cancelled before does not happen.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use serde::{Deserialize, Serialize};

use crate::audit::RequestInfo;
use crate::sql;
use crate::tenancy::Principal;
use crate::{Store, Tx, fault, from_json, json};

/// What the operation and its audit row say of their request where the scheduler made it.
const USER_AGENT: &str = concat!("holdfast/", env!("CARGO_PKG_VERSION"), " scheduled-delete");

/// Who asked for a deletion, and with which request.
#[derive(Serialize, Deserialize)]
struct By {
    user_id: i64,
    api_key_id: i64,
    request_id: String,
    trace_id: Option<String>,
    method: String,
    path: String,
}

/// A deletion whose time has come.
#[derive(Debug)]
pub struct Due {
    /// When it was due.
    pub at: Timestamp,
    /// Whoever asked for it.
    pub who: Principal,
    /// Their request, as far as it still says something: it names the request that the deletion was asked for with.
    pub info: RequestInfo,
}

impl Store {
    /// CVMs whose deletion is due, the oldest first.
    pub async fn deletes_due(&self, limit: i64, now: Timestamp) -> Result<Vec<i64>, Error> {
        sql::query(
            "SELECT id FROM vm WHERE scheduled_delete_at IS NOT NULL AND scheduled_delete_at <= $1
             ORDER BY scheduled_delete_at LIMIT $2",
        )
        .bind(now.micros())
        .bind(limit)
        .fetch_all(self.read())
        .await
        .map_err(fault)
    }
}

/// Sets the time at which a CVM is to be deleted, in place of any before.
pub async fn schedule_set(
    tx: &mut Tx,
    vm: i64,
    at: Timestamp,
    who: &Principal,
    info: &RequestInfo,
) -> Result<(), Error> {
    let by = By {
        user_id: who.user_id,
        api_key_id: who.api_key_id,
        request_id: info.request_id.clone(),
        trace_id: info.trace_id.clone(),
        method: info.method.clone(),
        path: info.path.clone(),
    };
    write(tx, vm, Some(at), Some(json(&by)?)).await
}

/// The CVM is not to be deleted at any time.
pub async fn schedule_drop(tx: &mut Tx, vm: i64) -> Result<(), Error> {
    write(tx, vm, None, None).await
}

async fn write(tx: &mut Tx, vm: i64, at: Option<Timestamp>, by: Option<String>) -> Result<(), Error> {
    sql::query("UPDATE vm SET scheduled_delete_at = $2, scheduled_delete_by = $3 WHERE id = $1")
        .bind(vm)
        .bind(at.map(Timestamp::micros))
        .bind(by)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Takes a CVM's deletion if it is due: then it is not due any more.
pub async fn schedule_take(tx: &mut Tx, vm: i64, now: Timestamp) -> Result<Option<Due>, Error> {
    let due: Option<(i64, i64, String)> = sql::query(
        "SELECT workspace_id, scheduled_delete_at, scheduled_delete_by FROM vm
         WHERE id = $1 AND deleted_at IS NULL AND scheduled_delete_at <= $2 AND scheduled_delete_by IS NOT NULL",
    )
    .bind(vm)
    .bind(now.micros())
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    let Some((workspace, at, by)) = due else { return Ok(None) };
    let by: By = from_json(&by)?;
    schedule_drop(tx, vm).await?;
    let who = principal(tx, workspace, &by).await?;
    let info = RequestInfo {
        request_id: by.request_id,
        trace_id: by.trace_id,
        // Nobody is at that address now.
        client_address: None,
        user_agent: USER_AGENT.to_owned(),
        method: by.method,
        path: by.path,
        idempotency: None,
        rehearsal: None,
    };
    Ok(Some(Due { at: Timestamp(at), who, info }))
}

/// Who asked, whatever has become of their key and their role since: what they asked for was accepted then.
async fn principal(tx: &mut Tx, workspace: i64, by: &By) -> Result<Principal, Error> {
    sql::query(
        "SELECT u.id AS user_id, u.username, u.email, u.role AS user_role, w.id AS workspace_id,
                w.uuid AS workspace_uuid, w.slug AS workspace_slug, w.name AS workspace_name,
                w.tier AS workspace_tier, w.address AS workspace_address,
                COALESCE((SELECT m.role FROM workspace_member m WHERE m.workspace_id = w.id AND m.user_id = u.id), '')
                    AS member_role,
                p.id AS project_id, p.uuid AS project_uuid, $3 AS api_key_id, '' AS default_version,
                'token' AS key_kind, '{}' AS limits
         FROM user_account u JOIN workspace w ON w.id = $2
         JOIN project p ON p.workspace_id = w.id AND p.is_default
         WHERE u.id = $1",
    )
    .bind(by.user_id)
    .bind(workspace)
    .bind(by.api_key_id)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}
