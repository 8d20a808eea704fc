//! Start, stop, shutdown, restart and delete: each is one accepted operation, answered before it is carried out.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_model::error::Error;
use holdfast_store::vms::Vm;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Info, WriteVms};
use crate::json::Json;
use crate::phala::lenient::{Flag, MaybeBody};
use crate::phala::version::{Asked, Version};
use crate::phala::view;
use crate::phala::view::machine::Machine;

/// How to restart.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct RestartRequest {
    /// End the guest at once instead of letting it stop its app.
    #[schema(value_type = Option<bool>)]
    #[serde(default)]
    force: Option<Flag>,
}

/// Start a CVM
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/start", tag = "CVMs", operation_id = "cvms_start",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = Machine), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "Busy, or not stopped")))]
pub async fn start(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<Machine>, Failure> {
    let vm = app.control.vm_power_on(&caller.who, &info, &id).await?;
    Ok(answer(&app, asked.of(&caller.who), vm).await?)
}

/// Stop a CVM
///
/// The guest stops its app and powers off; one that does not in time is ended.
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/stop", tag = "CVMs", operation_id = "cvms_stop",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = Machine), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "Busy, or not running")))]
pub async fn stop(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<Machine>, Failure> {
    let vm = app.control.vm_power_off(&caller.who, &info, &id).await?;
    Ok(answer(&app, asked.of(&caller.who), vm).await?)
}

/// Shut a CVM down
///
/// The guest is asked to stop its app and to power off, in the CVM's `shutdown_timeout` (60 seconds unless `PATCH
/// /cvms/{cvm_id}` set another). One that has not done so is ended where `allow_force_stop` is set; otherwise the operation
/// fails and the CVM runs on.
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/shutdown", tag = "CVMs", operation_id = "cvms_shutdown",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = Machine), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "Busy, or not running")))]
pub async fn shutdown(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<Machine>, Failure> {
    let vm = app.control.vm_shutdown(&caller.who, &info, &id).await?;
    Ok(answer(&app, asked.of(&caller.who), vm).await?)
}

/// Restart a CVM
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/restart", tag = "CVMs", operation_id = "cvms_restart",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body(content = RestartRequest, description = "May be missing"),
    responses((status = 200, body = Machine), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "Busy, or not running"),
        (status = 422, description = "Validation error")))]
pub async fn restart(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(id): Path<String>,
    MaybeBody(request): MaybeBody<RestartRequest>,
) -> Result<Json<Machine>, Failure> {
    let force = request.and_then(|r| r.force).is_some_and(|flag| flag.0);
    let vm = app.control.vm_restart(&caller.who, &info, &id, force).await?;
    Ok(answer(&app, asked.of(&caller.who), vm).await?)
}

/// Delete a CVM
#[utoipa::path(delete, path = "/api/v1/cvms/{cvm_id}", tag = "CVMs", operation_id = "cvms_delete",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 204, description = "Accepted"), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "Busy")))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    app.control.vm_delete(&caller.who, &info, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn answer(app: &App, version: Version, vm: Vm) -> Result<Json<Machine>, Error> {
    Ok(Json(Machine::of(&view::load_one(&app.control, vm).await?, version)))
}
