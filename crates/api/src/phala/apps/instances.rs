//! `POST /apps/{app_id}/instances`: one more CVM of an app.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use holdfast_control::instances::Instance;
use holdfast_model::error::{Code, Error};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, InProject, Info, WriteVms};
use crate::json::Json;
use crate::phala::cvms::update::refuse_chain;
use crate::phala::lenient::{Integer, MaybeBody};
use crate::phala::version::{Asked, Version};
use crate::phala::view;
use crate::phala::view::info::Resource;
use crate::phala::view::machine::Machine;

/// What is to be different from the app's newest CVM.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct CreateAppInstanceRequest {
    #[schema(value_type = Option<i64>)]
    node_id: Option<Integer>,
    /// The same as `node_id`, which goes before it.
    #[schema(value_type = Option<i64>)]
    teepod_id: Option<Integer>,
    docker_compose_file: Option<String>,
    /// Empty: none.
    pre_launch_script: Option<String>,
    /// Hex of all env values, encrypted to the app's key.
    encrypted_env: Option<String>,
    /// Hash of a provisioned app-compose.json.
    compose_hash: Option<String>,
    /// For a KMS on a chain; refused here.
    token: Option<String>,
    transaction_hash: Option<String>,
}

/// The new CVM.
///
/// The client that speaks 2026-05-22 and later reads it as if it came from a list of CVMs: with `resource`, and without an
/// integer as `manifest_version`.
#[derive(Debug, Serialize, ToSchema)]
pub struct AppInstance {
    #[serde(flatten)]
    machine: Machine,
    /// From 2026-05-22.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<Resource>,
}

impl AppInstance {
    fn of(cvm: &view::Cvm, version: Version) -> Self {
        let mut machine = Machine::of(cvm, version);
        let resource = (version >= Version::V20260522).then(|| {
            machine.manifest_version = None;
            Resource::of(&cvm.vm)
        });
        Self { machine, resource }
    }
}

/// Create an app instance
///
/// The new CVM is made like the app's newest one and has an empty disk of its own.
#[utoipa::path(post, path = "/api/v1/apps/{app_id}/instances", tag = "Apps", operation_id = "apps_instance_create",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id"),
        ("X-Holdfast-Project" = Option<String>, Header, description = "UUID or name of the app's project; refused when it is another one")),
    request_body = Option<CreateAppInstanceRequest>,
    responses((status = 200, body = AppInstance), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"),
        (status = 404, description = "App not found, or it has no CVM"),
        (status = 409, description = "The newest CVM is being updated or removed, or the app is in another project"),
        (status = 422, description = "Validation error, or nothing was provisioned under the hash")))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(app_id): Path<String>,
    headers: HeaderMap,
    MaybeBody(request): MaybeBody<CreateAppInstanceRequest>,
) -> Result<Json<AppInstance>, Failure> {
    refuse_chain(&headers)?;
    let InProject(project) = InProject::of(&headers)?;
    let request = request.unwrap_or_default();
    if [&request.token, &request.transaction_hash].into_iter().flatten().any(|text| !text.is_empty()) {
        let why = "token, transaction_hash: this server's KMS is off any chain; leave them out.";
        return Err(Error::new(Code::FeatureMissing, why).into());
    }
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let instance = Instance {
        node_id: request.node_id.or(request.teepod_id).map(|id| id.0),
        compose_hash: request.compose_hash.filter(|hash| !hash.is_empty()),
        docker_compose_file: request.docker_compose_file,
        pre_launch_script: request.pre_launch_script,
        encrypted_env: request.encrypted_env,
        project,
    };
    let vm = app.control.app_instance_create(&caller.who, &info, &row, instance).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(Json(AppInstance::of(&cvm, asked.of(&caller.who))))
}
