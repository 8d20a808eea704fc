//! Another app-compose.json, whole (in two requests or one) or one of its files.
//!
//! The one rule: what the guest gets are bytes that were hashed here. A client that names a hash names bytes that this
//! server made; one that sends a file gets it put into the app-compose.json in force.

use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holdfast_control::update::Update;
use holdfast_engine::ops;
use holdfast_model::error::{Code, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::compose_file::text;
use super::update::{UpdateAccepted, refuse_chain};
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Read, WriteVms};
use crate::json::Json;
use crate::phala::lenient::Flag;
use crate::phala::view;
use crate::phala::view::kms_info;
use crate::phala::view::parts::KmsInfo;

/// What provisioning came to.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComposeFileProvisioned {
    /// 40 hex digits.
    app_id: String,
    device_id: Option<String>,
    /// sha256 of app-compose.json, 64 hex digits.
    compose_hash: String,
    kms_info: Option<KmsInfo>,
    /// Always false: nothing is registered on any chain.
    compose_hash_registered: bool,
}

/// Which provisioned app-compose.json to run.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ComposeFileTrigger {
    compose_hash: String,
    /// Hex of all env values, encrypted to the app's key.
    encrypted_env: Option<String>,
    /// Names of the env values; those that app-compose.json allows unless told.
    env_keys: Option<Vec<String>>,
    /// False: the values stay as they are.
    #[schema(value_type = Option<bool>)]
    update_env_vars: Option<Flag>,
}

/// A whole app-compose.json, and its hash as it was provisioned.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ComposeFileReplace {
    #[schema(value_type = Object)]
    compose_file: Map<String, Value>,
    compose_hash: String,
    /// Hex of all env values, encrypted to the app's key.
    encrypted_env: Option<String>,
    env_keys: Option<Vec<String>>,
}

/// Provision another app-compose.json for a CVM
///
/// Nothing changes until it is triggered with the hash.
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/compose_file/provision", tag = "CVMs",
    operation_id = "cvms_compose_file_provision",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body(content = Object, description = "app-compose.json; what is left out gets its default"),
    responses((status = 200, body = ComposeFileProvisioned), (status = 400, description = "It is not valid"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 422, description = "Validation error")))]
pub async fn provision(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(mut compose_file): Body<Map<String, Value>>,
) -> Result<Json<ComposeFileProvisioned>, Failure> {
    // Of the request, not of app-compose.json.
    compose_file.remove("update_env_vars");
    let (vm, compose_hash) = app.control.update_provision(&caller.who, &info, &id, &compose_file).await?;
    Ok(Json(ComposeFileProvisioned {
        app_id: vm.app_id,
        device_id: None,
        compose_hash,
        kms_info: Some(kms_info(&app.control)),
        compose_hash_registered: false,
    }))
}

/// Run a provisioned app-compose.json
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/compose_file", tag = "CVMs",
    operation_id = "cvms_compose_file_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = ComposeFileTrigger,
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"),
        (status = 422, description = "Validation error, or nothing was provisioned under the hash")))]
pub async fn trigger(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<ComposeFileTrigger>,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    let with_env = request.update_env_vars.is_none_or(|flag| flag.0);
    let update = Update {
        compose_hash: Some(request.compose_hash),
        encrypted_env: request.encrypted_env.filter(|_| with_env),
        env_keys: request.env_keys,
        ..Update::default()
    };
    accept(&app, &caller, &info, &id, update).await
}

/// Replace app-compose.json
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/compose_file", tag = "CVMs",
    operation_id = "cvms_compose_file_replace",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = ComposeFileReplace,
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"),
        (status = 422, description = "Validation error, or the hash is that of something else")))]
pub async fn replace(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<ComposeFileReplace>,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    // The key belongs to the update; to keep the bytes twice does no harm.
    let keeping = holdfast_control::RequestInfo { idempotency: None, ..info.clone() };
    let (_, hash) = app.control.update_provision(&caller.who, &keeping, &id, &request.compose_file).await?;
    if hash != request.compose_hash.to_ascii_lowercase() {
        let why = format!("is not the hash of this compose_file, which is {hash}");
        return Err(Error::field("body", "compose_hash", "value_error", why).into());
    }
    let update = Update {
        compose_hash: Some(hash),
        encrypted_env: request.encrypted_env,
        env_keys: request.env_keys,
        ..Update::default()
    };
    accept(&app, &caller, &info, &id, update).await
}

/// Replace the docker-compose file
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/docker-compose", tag = "CVMs",
    operation_id = "cvms_docker_compose_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body(content = String, content_type = "text/yaml"),
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It is not valid"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 415, description = "Not text"),
        (status = 422, description = "Validation error")))]
pub async fn docker_compose(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    headers: HeaderMap,
    Text(content): Text,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    refuse_chain(&headers)?;
    let update = Update { docker_compose_file: Some(content), ..Update::default() };
    accept(&app, &caller, &info, &id, update).await
}

/// Replace the pre-launch script
///
/// An empty one is none.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/pre-launch-script", tag = "CVMs",
    operation_id = "cvms_pre_launch_script_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body(content = String, content_type = "text/plain"),
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It is not valid"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 415, description = "Not text"),
        (status = 422, description = "Validation error")))]
pub async fn pre_launch_script(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    headers: HeaderMap,
    Text(content): Text,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    refuse_chain(&headers)?;
    let update = Update { pre_launch_script: Some(content), ..Update::default() };
    accept(&app, &caller, &info, &id, update).await
}

/// Pre-launch script of a CVM
///
/// Empty for an app that has none.
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/pre-launch-script", tag = "CVMs",
    operation_id = "cvms_pre_launch_script",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, content_type = "text/plain", body = String),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found")))]
pub async fn pre_launch_script_get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(text(cvm.compose.pre_launch_script.unwrap_or_default()))
}

async fn accept(
    app: &App,
    caller: &Caller<WriteVms>,
    info: &holdfast_control::RequestInfo,
    id: &str,
    update: Update,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    let updated = app.control.vm_update(&caller.who, info, id, &ops::COMPOSE_UPDATE, update, 202).await?;
    Ok(UpdateAccepted::of(&updated))
}

/// A body that is the file itself, whatever type of text it says it is.
#[derive(Debug)]
pub struct Text(String);

impl FromRequest<App> for Text {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if kind.starts_with("multipart/") {
            let why = "Send the file itself as the body, as text/yaml or text/plain.";
            return Err(Error::new(Code::UnsupportedBody, why).into());
        }
        let bytes = Bytes::from_request(request, app).await.map_err(|rejection| {
            let status = rejection.into_response().status();
            if status == StatusCode::PAYLOAD_TOO_LARGE {
                let limit = crate::BODY_LIMIT;
                Error::new(Code::BodyTooLarge, format!("The body is larger than {limit} bytes."))
            } else {
                Error::new(Code::InvalidRequest, "The body did not arrive whole.")
            }
        })?;
        let text = String::from_utf8(bytes.into());
        Ok(Self(text.map_err(|_| Error::new(Code::InvalidRequest, "The body is not UTF-8 text."))?))
    }
}
