//! `GET /v1/audit_logs` and `/v1/audit_logs/{audit_log_id}`.

use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::operations::Pagination;
use crate::App;
use crate::audit::{self, AuditLog};
use crate::error::Failure;
use crate::extract::{Caller, Params, ReadAudit};
use crate::json::Json;

#[derive(Debug, Serialize, ToSchema)]
pub struct AuditLogList {
    pub items: Vec<AuditLog>,
    pub pagination: Pagination,
}

/// List audit log entries
///
/// Every request that changed something in the workspace, and every one that was refused.
#[utoipa::path(get, path = "/v1/audit_logs", tag = "Audit Logs", security(("bearer" = [])), params(
    ("cursor" = Option<String>, Query, description = "Cursor of a previous answer, for the same filters and order"),
    ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Entries per page, 20 by default"),
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
    ("sort" = Option<String>, Query, description = "`created_at` or `status_code`, each with `:asc` or `:desc`, joined by commas; `created_at:desc` by default"),
), responses(
    (status = 200, body = AuditLogList),
    (status = 400, description = "The cursor is not valid for these filters and this order"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Only for owners and administrators"),
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<ReadAudit>,
    params: Params,
) -> Result<Json<AuditLogList>, Failure> {
    let filter = audit::filter(&caller.who, &params)?;
    let limit = params.integer("limit", 1, 100)?.unwrap_or(20);
    let sort = audit::sort(&params)?;
    let listed = app.control.audit_log("nirvana", &filter, sort, params.text("cursor"), limit).await?;
    let items = listed.page.items.iter().map(AuditLog::of).collect();
    Ok(Json(AuditLogList { items, pagination: Pagination::of(&listed) }))
}

/// Get an audit log entry
#[utoipa::path(get, path = "/v1/audit_logs/{audit_log_id}", tag = "Audit Logs", security(("bearer" = [])), params(
    ("audit_log_id" = String, Path),
), responses(
    (status = 200, body = AuditLog),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Only for owners and administrators"),
    (status = 404, description = "There is no such entry in the workspace"),
))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<ReadAudit>,
    Path(id): Path<String>,
) -> Result<Json<AuditLog>, Failure> {
    Ok(Json(AuditLog::of(&app.control.audit_entry(&caller.who, &id).await?)))
}
