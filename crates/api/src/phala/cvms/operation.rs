//! The operation that runs on a CVM now: how far it is, and cancelling it.

use axum::extract::{Path, State};
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Info, Read, WriteVms};
use crate::json::Json;

/// What a cancel came to.
#[derive(Debug, Serialize, ToSchema)]
pub struct CancelOperationResponse {
    /// True: it is being undone. What cannot be cancelled answers 409.
    pub cancelled: bool,
    pub correlation_id: Option<String>,
}

/// The operation that runs now.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationStatusResponse {
    /// `idle` or `in_progress`.
    pub status: &'static str,
    pub operation_type: Option<String>,
    pub target_state: Option<String>,
    pub correlation_id: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
}

/// Cancel the running operation
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/operations/cancel", tag = "CVMs", operation_id = "cvms_operations_cancel",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = CancelOperationResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"),
        (status = 409, description = "Nothing runs, or it cannot be cancelled any more")))]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<CancelOperationResponse>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let Some(running) = vm.operation_uuid else {
        return Err(Error::new(Code::NotCancellable, format!("No operation of \"{}\" is running.", vm.name)).into());
    };
    let operation = app.control.operation_cancel(&caller.who, &info, &running).await?;
    Ok(Json(CancelOperationResponse { cancelled: true, correlation_id: Some(operation.uuid) }))
}

/// Get the running operation
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/operation-status", tag = "CVMs", operation_id = "cvms_operation_status",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = OperationStatusResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn status(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<OperationStatusResponse>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    Ok(Json(OperationStatusResponse {
        status: if vm.in_progress() { "in_progress" } else { "idle" },
        operation_type: vm.operation_type,
        target_state: vm.operation_target,
        correlation_id: vm.operation_uuid,
        started_at: vm.operation_created_at.map(Timestamp),
    }))
}
