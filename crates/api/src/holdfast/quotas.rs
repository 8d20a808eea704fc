//! What workspaces may have, as administrators see and set it. The workspace's own view is `GET
//! /api/v1/workspaces/{team_slug}/quotas`; both read the same rows.
//!
//! The one rule: a change names the limits that it changes. What it does not name stays.

use axum::extract::{Path, State};
use holdfast_control::quotas::CLEAR;
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::quotas::{Named, Quota};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::said::ForAdministrators;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, RunInstallation};
use crate::json::Json;

/// What a workspace may have, and what it has.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkspaceQuota)]
pub struct View {
    /// `wks_...`
    workspace: String,
    slug: String,
    quotas: Dimensions,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkspaceQuotaDimensions)]
pub struct Dimensions {
    /// CVMs.
    vm_slots: Dimension,
    vcpu: Dimension,
    memory_mb: Dimension,
    disk_gb: Dimension,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkspaceQuotaDimension)]
pub struct Dimension {
    /// Null: nothing limits it.
    limit: Option<i64>,
    /// More than the limit after that was lowered below what there was; then nothing grows.
    used: i64,
    /// Never negative. Null: nothing limits it.
    remaining: Option<i64>,
}

/// Limits to change. Null: no limit. Absent: as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = WorkspaceQuotaChange)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = 0)]
    vm_slots: Option<Option<i64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = 0)]
    vcpu: Option<Option<i64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = 0)]
    memory_mb: Option<Option<i64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = 0)]
    disk_gb: Option<Option<i64>>,
}

/// A field that is there, whether or not it is null.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Get the quota of a workspace
#[utoipa::path(get, path = "/holdfast/v1/quotas/{workspace}", tag = "Quotas", operation_id = "quotas_get",
    security(("key" = []), ("bearer" = [])),
    params(("workspace" = String, Path, description = "Slug or `wks_` id")), responses(
    (status = 200, body = View),
    ForAdministrators,
    (status = 404, description = "There is no such workspace"),
))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Path(workspace): Path<String>,
) -> Result<Json<View>, Failure> {
    Ok(Json(view(app.control.quota_of(&caller.who, &workspace).await?)))
}

/// Change the quota of a workspace
///
/// A limit below what the workspace has takes nothing away; it refuses what would grow.
#[utoipa::path(patch, path = "/holdfast/v1/quotas/{workspace}", tag = "Quotas", operation_id = "quotas_set",
    security(("key" = []), ("bearer" = [])),
    params(("workspace" = String, Path, description = "Slug or `wks_` id")), request_body = Change, responses(
    (status = 200, body = View),
    ForAdministrators,
    (status = 404, description = "There is no such workspace"),
    (status = 422, description = "A limit is not valid"),
))]
pub async fn set(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path(workspace): Path<String>,
    Body(change): Body<Change>,
) -> Result<Json<View>, Failure> {
    let changes = [change.vm_slots, change.vcpu, change.memory_mb, change.disk_gb];
    Ok(Json(view(app.control.quota_change(&caller.who, &info, &workspace, changes).await?)))
}

/// Lift all limits of a workspace
#[utoipa::path(delete, path = "/holdfast/v1/quotas/{workspace}", tag = "Quotas", operation_id = "quotas_clear",
    security(("key" = []), ("bearer" = [])),
    params(("workspace" = String, Path, description = "Slug or `wks_` id")), responses(
    (status = 200, body = View),
    ForAdministrators,
    (status = 404, description = "There is no such workspace"),
))]
pub async fn clear(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path(workspace): Path<String>,
) -> Result<Json<View>, Failure> {
    Ok(Json(view(app.control.quota_change(&caller.who, &info, &workspace, CLEAR).await?)))
}

fn view((workspace, quota): (Named, Quota)) -> View {
    let left = quota.remaining();
    let dimension = |limit, used, remaining| Dimension { limit, used, remaining };
    View {
        workspace: hashid::encode(Prefix::Workspace, workspace.id),
        slug: workspace.slug,
        quotas: Dimensions {
            vm_slots: dimension(quota.limits.vm_slots, quota.used.vm_slots, left.vm_slots),
            vcpu: dimension(quota.limits.vcpu, quota.used.vcpu, left.vcpu),
            memory_mb: dimension(quota.limits.memory_mb, quota.used.memory_mb, left.memory_mb),
            disk_gb: dimension(quota.limits.disk_gb, quota.used.disk_gb, left.disk_gb),
        },
    }
}
