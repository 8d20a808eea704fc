//! `PATCH /cvms/{cvm_id}/resources`: another size.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::update::Update;
use holdfast_engine::ops;
use serde::Deserialize;
use utoipa::ToSchema;

use super::update::UpdateAccepted;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, WriteVms};
use crate::json::Json;
use crate::phala::lenient::{Flag, Integer};

/// The wanted size; what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ResizeRequest {
    /// See `GET /instance-types`. Numbers beside it go before its own.
    instance_type: Option<String>,
    #[schema(value_type = Option<i64>)]
    vcpu: Option<Integer>,
    /// MB.
    #[schema(value_type = Option<i64>)]
    memory: Option<Integer>,
    /// GB; never less than there is.
    #[schema(value_type = Option<i64>)]
    disk_size: Option<Integer>,
    /// 0 or false: refuse what would make a running CVM start anew.
    #[schema(value_type = Option<i64>)]
    allow_restart: Option<Flag>,
}

/// Resize a CVM
///
/// A CVM that runs is stopped and started with its new size; the answer says whether it is. One that is stopped gets it
/// written and starts with it.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/resources", tag = "CVMs", operation_id = "cvms_resize",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = ResizeRequest,
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 422, description = "Validation error")))]
pub async fn patch(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<ResizeRequest>,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    let number = |n: Option<Integer>| n.map(|n| n.0);
    let update = Update {
        instance_type: request.instance_type,
        vcpu: number(request.vcpu),
        memory_mb: number(request.memory),
        disk_gb: number(request.disk_size),
        without_restart: request.allow_restart.is_some_and(|allowed| !allowed.0),
        ..Update::default()
    };
    let updated = app.control.vm_update(&caller.who, &info, &id, &ops::RESIZE, update, 202).await?;
    Ok(UpdateAccepted::of(&updated))
}
