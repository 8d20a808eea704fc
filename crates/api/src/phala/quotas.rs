//! `GET /workspaces/{team_slug}/quotas`: what a workspace may have.
//!
//! The one rule: what is shown is what the next create is checked against, and -1 is the clients' word for no limit. What
//! the nodes have room for is another question, and `GET /teepods/available` answers it.

use axum::extract::{Path, State};
use holdfast_model::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::workspaces::check_own;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;

/// What a workspace may have, and what of it is left.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceQuotasResponse {
    pub team_slug: String,
    pub tier: String,
    pub quotas: WorkspaceQuotas,
    /// Nodes that are the workspace's alone: none.
    pub reserved_nodes: QuotaMetric,
    pub reserved_gpu: WorkspaceReservedGpuQuota,
    #[schema(value_type = String, format = DateTime)]
    pub as_of: Timestamp,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceQuotas {
    pub vm_slots: QuotaMetric,
    pub vcpu: QuotaMetric,
    pub memory_mb: QuotaMetric,
    pub disk_gb: QuotaMetric,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct QuotaMetric {
    /// -1: no limit.
    pub limit: i64,
    /// -1: no limit.
    pub remaining: i64,
}

/// GPUs that are the workspace's alone: none.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceReservedGpuQuota {
    pub gpus: QuotaMetric,
    pub in_use: i64,
    pub misconfigured: i64,
}

const NONE: QuotaMetric = QuotaMetric { limit: 0, remaining: 0 };

fn metric(limit: Option<i64>, remaining: Option<i64>) -> QuotaMetric {
    QuotaMetric { limit: limit.unwrap_or(-1), remaining: remaining.unwrap_or(-1) }
}

/// Get the quotas of a workspace
#[utoipa::path(get, path = "/api/v1/workspaces/{team_slug}/quotas", tag = "Workspaces",
    operation_id = "workspaces_quotas",
    params(("team_slug" = String, Path, description = "Slug or `wks_` id")),
    responses((status = 200, body = WorkspaceQuotasResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "Workspace not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(slug): Path<String>,
) -> Result<Json<WorkspaceQuotasResponse>, Failure> {
    check_own(&caller.who, &slug)?;
    let quota = app.control.store.quota(caller.who.workspace_id).await?;
    let (limits, left) = (quota.limits, quota.remaining());
    Ok(Json(WorkspaceQuotasResponse {
        team_slug: caller.who.workspace_slug,
        tier: caller.who.workspace_tier,
        quotas: WorkspaceQuotas {
            vm_slots: metric(limits.vm_slots, left.vm_slots),
            vcpu: metric(limits.vcpu, left.vcpu),
            memory_mb: metric(limits.memory_mb, left.memory_mb),
            disk_gb: metric(limits.disk_gb, left.disk_gb),
        },
        reserved_nodes: NONE,
        reserved_gpu: WorkspaceReservedGpuQuota { gpus: NONE, in_use: 0, misconfigured: 0 },
        as_of: app.control.now(),
    }))
}
