//! Replicas: one more CVM of an app, made like a certain one that it has.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use holdfast_control::instances::Instance;
use serde::Deserialize;
use utoipa::ToSchema;

use super::update::refuse_chain;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, InProject, Info, WriteVms};
use crate::json::Json;
use crate::phala::lenient::{Integer, MaybeBody};
use crate::phala::version::Asked;
use crate::phala::view;
use crate::phala::view::machine::Machine;

/// What is to be different from the other CVM.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct ReplicateRequest {
    #[schema(value_type = Option<i64>)]
    node_id: Option<Integer>,
    /// The same as `node_id`, which goes before it.
    #[schema(value_type = Option<i64>)]
    teepod_id: Option<Integer>,
    /// Hex of all env values, encrypted to the app's key.
    encrypted_env: Option<String>,
    /// Hash of a provisioned app-compose.json.
    compose_hash: Option<String>,
}

impl ReplicateRequest {
    fn instance(self, project: Option<String>) -> Instance {
        Instance {
            node_id: self.node_id.or(self.teepod_id).map(|id| id.0),
            compose_hash: self.compose_hash.filter(|hash| !hash.is_empty()),
            encrypted_env: self.encrypted_env,
            project,
            ..Instance::default()
        }
    }
}

/// Replicate a CVM
///
/// The new CVM is made like this one and has an empty disk of its own.
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/replicas", tag = "CVMs", operation_id = "cvms_replicate",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name"),
        ("X-Holdfast-Project" = Option<String>, Header, description = "UUID or name of the app's project; refused when it is another one")),
    request_body = Option<ReplicateRequest>,
    responses((status = 200, body = Machine), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "The id names several CVMs, the CVM is being updated or removed, or is in another project"),
        (status = 422, description = "Validation error, or nothing was provisioned under the hash")))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(id): Path<String>,
    headers: HeaderMap,
    MaybeBody(request): MaybeBody<Option<ReplicateRequest>>,
) -> Result<Json<Machine>, Failure> {
    refuse_chain(&headers)?;
    let InProject(project) = InProject::of(&headers)?;
    let instance = request.flatten().unwrap_or_default().instance(project);
    let vm = app.control.vm_replicate(&caller.who, &info, None, &id, instance).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(Json(Machine::of(&cvm, asked.of(&caller.who))))
}

/// Replicate a CVM of an app
///
/// The same, for a CVM that is to be one of this app.
#[utoipa::path(post, path = "/api/v1/apps/{app_id}/cvms/{vm_uuid}/replicas", tag = "Apps",
    operation_id = "apps_cvm_replicate",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id"),
        ("vm_uuid" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name"),
        ("X-Holdfast-Project" = Option<String>, Header, description = "UUID or name of the app's project; refused when it is another one")),
    request_body = Option<ReplicateRequest>,
    responses((status = 200, body = Machine), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "App or CVM not found"),
        (status = 409, description = "The id names several CVMs, the CVM is being updated or removed, or is in another project"),
        (status = 422, description = "Validation error, or nothing was provisioned under the hash")))]
pub async fn of_app(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path((app_id, id)): Path<(String, String)>,
    headers: HeaderMap,
    MaybeBody(request): MaybeBody<Option<ReplicateRequest>>,
) -> Result<Json<Machine>, Failure> {
    refuse_chain(&headers)?;
    let InProject(project) = InProject::of(&headers)?;
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let instance = request.flatten().unwrap_or_default().instance(project);
    let vm = app.control.vm_replicate(&caller.who, &info, Some(&row), &id, instance).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(Json(Machine::of(&cvm, asked.of(&caller.who))))
}
