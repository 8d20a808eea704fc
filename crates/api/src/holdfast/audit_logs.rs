//! The audit log, with what joins it to operations, keys and the server's own log.

use axum::extract::{Path, State};
use holdfast_store::audit_log::Entry;
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::audit::{self, AuditLog};
use crate::error::Failure;
use crate::extract::{Caller, Params, ReadAudit};
use crate::json::Json;

/// A request that changed something, or was refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditEntry {
    #[serde(flatten)]
    pub log: AuditLog,
    /// The API key that the request came with.
    pub api_key_id: Option<String>,
    /// The request's id, as its answer and the server's log name it.
    pub request_id: String,
    /// The operation that it started or acted on.
    pub operation_id: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AuditPage {
    pub items: Vec<AuditEntry>,
    pub next_cursor: Option<String>,
    pub previous_cursor: Option<String>,
    /// How many match: exact up to 1,000.
    pub total: i64,
    /// Above 1,000: `total` is extrapolated.
    pub total_is_estimate: bool,
}

/// List audit log entries
///
/// Every request that changed something in the workspace, and every one that was refused, newest first.
#[utoipa::path(get, path = "/holdfast/v1/audit-logs", tag = "Audit log", security(("key" = []), ("bearer" = [])), params(
    ("cursor" = Option<String>, Query, description = "Cursor of a previous answer, for the same filters and order"),
    ("limit" = Option<i64>, Query, minimum = 1, maximum = 500, description = "Entries per page, 50 by default"),
    ("action" = Option<String>, Query, description = "Only this action"),
    ("actor_id" = Option<String>, Query, description = "Only requests of this actor"),
    ("actor_type" = Option<String>, Query, description = "`user` or `api_key`"),
    ("client_ip" = Option<String>, Query, description = "Only requests from this address"),
    ("created_at_min" = Option<String>, Query, description = "At or after, RFC 3339"),
    ("created_at_max" = Option<String>, Query, description = "At or before, RFC 3339"),
    ("method" = Option<String>, Query, description = "Only this HTTP method"),
    ("path" = Option<String>, Query, description = "Only paths that contain this"),
    ("status_code_min" = Option<i64>, Query, description = "Answered with this status or a higher one"),
    ("status_code_max" = Option<i64>, Query, description = "Answered with this status or a lower one"),
    ("target_id" = Option<String>, Query, description = "Only requests about this resource"),
    ("target_type" = Option<String>, Query, description = "Only requests about this type of resource"),
    ("operation_id" = Option<String>, Query, description = "Only requests that started this operation or acted on it"),
    ("request_id" = Option<String>, Query, description = "Only the request with this id"),
    ("sort" = Option<String>, Query, description = "`created_at` or `status_code`, each with `:asc` or `:desc`, joined by commas; `created_at:desc` by default"),
), responses(
    (status = 200, body = AuditPage),
    (status = 400, description = "The cursor is not valid for these filters and this order"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Only for owners and administrators"),
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<ReadAudit>,
    params: Params,
) -> Result<Json<AuditPage>, Failure> {
    let mut filter = audit::filter(&caller.who, &params)?;
    filter.operation_uuid = params.uuid("operation_id")?;
    filter.request_id = params.text("request_id").map(str::to_owned);
    let limit = params.integer("limit", 1, 500)?.unwrap_or(50);
    let sort = audit::sort(&params)?;
    let listed = app.control.audit_log("holdfast", &filter, sort, params.text("cursor"), limit).await?;
    Ok(Json(AuditPage {
        items: listed.page.items.iter().map(view).collect(),
        next_cursor: listed.next,
        previous_cursor: listed.previous,
        total: listed.page.total.number,
        total_is_estimate: listed.page.total.is_estimate,
    }))
}

/// Get an audit log entry
#[utoipa::path(get, path = "/holdfast/v1/audit-logs/{id}", tag = "Audit log", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path),
), responses(
    (status = 200, body = AuditEntry),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Only for owners and administrators"),
    (status = 404, description = "There is no such entry in the workspace"),
))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<ReadAudit>,
    Path(id): Path<String>,
) -> Result<Json<AuditEntry>, Failure> {
    Ok(Json(view(&app.control.audit_entry(&caller.who, &id).await?)))
}

fn view(entry: &Entry) -> AuditEntry {
    AuditEntry {
        log: AuditLog::of(entry),
        api_key_id: entry.api_key_uuid.clone(),
        request_id: entry.request_id.clone(),
        operation_id: entry.operation_uuid.clone(),
    }
}
