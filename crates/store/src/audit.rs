//! Who asked for what. An audit row is written by the transaction that accepts the request, before any effect. A request
//! that was refused has no such transaction; its row is written after the answer was decided.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use uuid::Uuid;

use crate::sql;
use crate::tenancy::Principal;
use crate::{Tx, fault};

/// The request behind a mutation, as the surface saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestInfo {
    pub request_id: String,
    /// W3C trace id, when the client sent a `traceparent`.
    pub trace_id: Option<String>,
    pub client_address: Option<String>,
    /// At most 512 characters of it; empty when the client sent none.
    pub user_agent: String,
    pub method: String,
    pub path: String,
    /// The client's idempotency key, when it sent one.
    pub idempotency: Option<crate::idempotency::Key>,
    /// Set: the request is not to be carried out, and what it would do goes there.
    pub rehearsal: Option<holdfast_model::preview::Rehearsal>,
}

/// What was asked for, and what became of it.
#[derive(Debug)]
pub struct Entry<'a> {
    pub action: &'a str,
    /// Empty, like the id, when nothing is known of a target.
    pub target_type: &'a str,
    pub target_id: &'a str,
    pub operation_id: Option<i64>,
    /// HTTP status the caller gets.
    pub status_code: u16,
}

/// Writes an entry. It belongs to the project of what it was about; what was about the workspace, and what was refused,
/// belongs to none.
pub async fn audit_insert(
    tx: &mut Tx,
    who: &Principal,
    request: &RequestInfo,
    entry: Entry<'_>,
    now: Timestamp,
) -> Result<(), Error> {
    sql::query(
        "INSERT INTO audit_log (uuid, workspace_id, actor_type, actor_id, actor_name, api_key_id, client_address,
            request_id, method, path, status_code, action, target_type, target_id, operation_id, at, user_agent,
            operation_uuid, project_id)
         VALUES ($1, $2, 'user', (SELECT uuid FROM user_account WHERE id = $3), $4, $5, $6, $7, $8, $9, $10, $11, $12,
            $13, $14, $15, $16, (SELECT uuid FROM operation WHERE id = $14),
            COALESCE((SELECT project_id FROM operation WHERE id = $14), CASE $12
                WHEN 'vm' THEN (SELECT project_id FROM vm WHERE uuid = $13)
                WHEN 'project' THEN (SELECT id FROM project WHERE uuid = $13) END))",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(who.workspace_id)
    .bind(who.user_id)
    .bind(&who.username)
    .bind(who.api_key_id)
    .bind(&request.client_address)
    .bind(&request.request_id)
    .bind(&request.method)
    .bind(&request.path)
    .bind(i64::from(entry.status_code))
    .bind(entry.action)
    .bind(entry.target_type)
    .bind(entry.target_id)
    .bind(entry.operation_id)
    .bind(now.micros())
    .bind(&request.user_agent)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}
