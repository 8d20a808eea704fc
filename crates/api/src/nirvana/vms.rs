//! Changes of VMs: each is one operation, answered before it is carried out. One that finds the VM busy waits for its
//! turn, as these clients expect.

use axum::extract::{Path, State};
use holdfast_engine::ops;

use super::operations::{Operation, view};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Info, WriteVms};
use crate::json::Json;

/// Restart a VM
#[utoipa::path(post, path = "/v1/compute/vms/{vm_id}/restart", tag = "VMs", security(("bearer" = [])), params(
    ("vm_id" = String, Path, description = "UUID"),
), responses(
    (status = 200, body = Operation, description = "Accepted; it waits while other operations on the VM are not over"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "The caller's role can only read"),
    (status = 404, description = "There is no such VM in the workspace"),
    (status = 409, description = "The VM does not run, or too many operations wait for it"),
))]
pub async fn restart(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<Operation>, Failure> {
    Ok(Json(view(&app.control.vm_queue(&caller.who, &info, &id, &ops::VM_RESTART).await?)?))
}

/// Delete a VM
#[utoipa::path(delete, path = "/v1/compute/vms/{vm_id}", tag = "VMs", security(("bearer" = [])), params(
    ("vm_id" = String, Path, description = "UUID"),
), responses(
    (status = 200, body = Operation, description = "Accepted; it waits while other operations on the VM are not over"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "The caller's role can only read"),
    (status = 404, description = "There is no such VM in the workspace"),
    (status = 409, description = "Too many operations wait for the VM"),
))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<Operation>, Failure> {
    Ok(Json(view(&app.control.vm_queue(&caller.who, &info, &id, &ops::VM_DELETE).await?)?))
}
