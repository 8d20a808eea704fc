//! What of a CVM only the control plane knows: its name, whether it is listed, and what it shows of itself. Each is one
//! operation that is over when it is answered.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::update::Update;
use holdfast_engine::ops;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, WriteVms};
use crate::json::Json;
use crate::phala::lenient::Flag;
use crate::phala::version::Asked;
use crate::phala::view;
use crate::phala::view::basic::CvmBasicInfo;
use crate::phala::view::machine::Machine;

/// What to show of a CVM.
#[derive(Debug, Deserialize, ToSchema)]
pub struct VisibilityRequest {
    #[schema(value_type = bool)]
    public_sysinfo: Flag,
    #[schema(value_type = bool)]
    public_logs: Flag,
    #[schema(value_type = Option<bool>)]
    public_tcbinfo: Option<Flag>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct ListedRequest {
    #[schema(value_type = bool)]
    listed: Flag,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct RenameRequest {
    /// 5 to 63 letters, digits and single dashes, beginning with a letter.
    name: String,
}

/// Update what a CVM shows
///
/// app-compose.json and its hash stay as they are.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/visibility", tag = "CVMs", operation_id = "cvms_visibility_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = VisibilityRequest,
    responses((status = 200, body = CvmBasicInfo, description = "In the variant of 2025-10-28, whatever the version"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 422, description = "Validation error")))]
pub async fn visibility(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<VisibilityRequest>,
) -> Result<Json<CvmBasicInfo>, Failure> {
    let update = Update {
        public_sysinfo: Some(request.public_sysinfo.0),
        public_logs: Some(request.public_logs.0),
        public_tcbinfo: request.public_tcbinfo.map(|flag| flag.0),
        ..Update::default()
    };
    let updated = app.control.vm_update(&caller.who, &info, &id, &ops::VISIBILITY_UPDATE, update, 200).await?;
    let cvm = view::load_one(&app.control, updated.vm).await?;
    Ok(Json(CvmBasicInfo::of(&app.control, &cvm)))
}

/// List or unlist a CVM
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/listed", tag = "CVMs", operation_id = "cvms_listed_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = ListedRequest,
    responses((status = 200, body = Machine), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "Busy"),
        (status = 422, description = "Validation error")))]
pub async fn listed(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<ListedRequest>,
) -> Result<Json<Machine>, Failure> {
    let update = Update { listed: Some(request.listed.0), ..Update::default() };
    let updated = app.control.vm_update(&caller.who, &info, &id, &ops::VISIBILITY_UPDATE, update, 200).await?;
    let cvm = view::load_one(&app.control, updated.vm).await?;
    Ok(Json(Machine::of(&cvm, asked.of(&caller.who))))
}

/// Rename a CVM
///
/// The guest's host name follows with its next boot.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/name", tag = "CVMs", operation_id = "cvms_rename",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = RenameRequest,
    responses((status = 204, description = "It has the name"), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "Busy, or the name is taken"),
        (status = 422, description = "Validation error")))]
pub async fn name(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<RenameRequest>,
) -> Result<StatusCode, Failure> {
    let update = Update { name: Some(request.name), ..Update::default() };
    app.control.vm_update(&caller.who, &info, &id, &ops::RENAME, update, 204).await?;
    Ok(StatusCode::NO_CONTENT)
}
