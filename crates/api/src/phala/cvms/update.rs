//! `PATCH /cvms/{cvm_id}`: any part of a CVM, as one operation with one diff; and what every update is answered with.
//!
//! The one rule: the answer is sent when the operation is accepted, and by then the CVM's status has left `running`. The
//! command line watches that status and takes `running` for done.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use holdfast_control::update::{Update, Updated};
use holdfast_engine::ops;
use holdfast_model::error::{Code, Error};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::deploy::asks_for_gpus;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, WriteVms, header};
use crate::json::Json;
use crate::phala::lenient::{Flag, Integer};

/// What to change; what is left out stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct UpdateCvmRequest {
    docker_compose_file: Option<String>,
    /// Empty: none any more.
    pre_launch_script: Option<String>,
    /// Names of env values that the app may get.
    allowed_envs: Option<Vec<String>>,
    #[schema(value_type = Option<bool>)]
    public_logs: Option<Flag>,
    #[schema(value_type = Option<bool>)]
    public_sysinfo: Option<Flag>,
    #[schema(value_type = Option<bool>)]
    public_tcbinfo: Option<Flag>,
    /// Hex of all env values, encrypted to the app's key.
    encrypted_env: Option<String>,
    user_config: Option<String>,
    #[schema(value_type = Option<Object>)]
    gpus: Option<Value>,
    #[schema(value_type = Option<i64>)]
    vcpu: Option<Integer>,
    /// MB.
    #[schema(value_type = Option<i64>)]
    memory: Option<Integer>,
    /// GB; never less than there is.
    #[schema(value_type = Option<i64>)]
    disk_size: Option<Integer>,
    image: Option<String>,
    /// Seconds that the app gets to stop when the CVM is shut down, and where a change starts it anew.
    #[schema(value_type = Option<i64>, minimum = 10, maximum = 1200)]
    shutdown_timeout: Option<Integer>,
    /// A shutdown may end a guest that has not powered off in its time. A stop, and a change that starts the CVM anew, always
    /// may.
    #[schema(value_type = Option<bool>)]
    allow_force_stop: Option<Flag>,
}

/// An update that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct UpdateAccepted {
    /// Always `in_progress`.
    pub status: &'static str,
    pub message: &'static str,
    /// The operation: `GET /cvms/{cvm_id}/operations` lists it.
    pub correlation_id: String,
    /// The CVM starts anew for it; otherwise the running app takes it over.
    pub restarts: bool,
    /// The list of env names that the app may get has changed, and the compose hash with it.
    pub allowed_envs_changed: bool,
}

impl UpdateAccepted {
    pub fn of(updated: &Updated) -> (StatusCode, Json<Self>) {
        let message = if updated.restarts {
            "The update was accepted; the CVM starts anew with it."
        } else {
            "The update was accepted; it needs no restart of the CVM."
        };
        let answer = Self {
            status: "in_progress",
            message,
            correlation_id: updated.operation.to_string(),
            restarts: updated.restarts,
            allowed_envs_changed: updated.allowed_envs_changed,
        };
        (StatusCode::ACCEPTED, Json(answer))
    }
}

/// Update a CVM
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}", tag = "CVMs", operation_id = "cvms_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = UpdateCvmRequest,
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 422, description = "Validation error")))]
pub async fn patch(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(request): Body<UpdateCvmRequest>,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    refuse_chain(&headers)?;
    if asks_for_gpus(request.gpus.as_ref()) {
        return Err(Error::new(Code::FeatureMissing, "gpus: this server has no GPUs to give.").into());
    }
    let flag = |flag: Option<Flag>| flag.map(|flag| flag.0);
    let number = |n: Option<Integer>| n.map(|n| n.0);
    let update = Update {
        docker_compose_file: request.docker_compose_file,
        pre_launch_script: request.pre_launch_script,
        allowed_envs: request.allowed_envs,
        public_logs: flag(request.public_logs),
        public_sysinfo: flag(request.public_sysinfo),
        public_tcbinfo: flag(request.public_tcbinfo),
        encrypted_env: request.encrypted_env,
        user_config: request.user_config,
        vcpu: number(request.vcpu),
        memory_mb: number(request.memory),
        disk_gb: number(request.disk_size),
        image: request.image,
        shutdown_timeout: number(request.shutdown_timeout).map(shutdown_timeout).transpose()?,
        allow_force_stop: flag(request.allow_force_stop),
        ..Update::default()
    };
    let updated = app.control.vm_update(&caller.who, &info, &id, &ops::UPDATE, update, 202).await?;
    Ok(UpdateAccepted::of(&updated))
}

fn shutdown_timeout(seconds: i64) -> Result<u32, Error> {
    let bad = |kind: &str, why: &str| Error::field("body", "shutdown_timeout", kind, why);
    match u32::try_from(seconds) {
        Ok(seconds @ 10..=1200) => Ok(seconds),
        Ok(1201..) => Err(bad("less_than_equal", "must be at most 1200")),
        _ => Err(bad("greater_than_equal", "must be at least 10")),
    }
}

/// Updates in two phases are for apps whose KMS is a contract on a chain; here there is nothing to prepare or to prove.
pub fn refuse_chain(headers: &HeaderMap) -> Result<(), Error> {
    let set = |name: &str| header(headers, name).is_some_and(|v| !v.is_empty() && !v.eq_ignore_ascii_case("false"));
    match ["X-Prepare-Only", "X-Compose-Hash", "X-Transaction-Hash"].into_iter().find(|name| set(name)) {
        Some(name) => {
            let why = format!("{name}: this server's KMS is off any chain, so updates are made in one request.");
            Err(Error::new(Code::FeatureMissing, why))
        }
        None => Ok(()),
    }
}
