//! `PATCH /cvms/{cvm_id}/envs`: other env values.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::update::Update;
use holdfast_engine::ops;
use holdfast_model::error::{Code, Error};
use serde::Deserialize;
use utoipa::ToSchema;

use super::update::UpdateAccepted;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, WriteVms};
use crate::json::Json;

/// All env values: the ones that were there before are gone.
#[derive(Debug, Deserialize, ToSchema)]
pub struct UpdateEnvsRequest {
    /// Hex of the values, encrypted to the app's key.
    encrypted_env: String,
    /// Names of the values. They become the names that the app may get, and its compose hash changes if they differ.
    env_keys: Option<Vec<String>>,
    /// For a KMS on a chain; refused here.
    compose_hash: Option<String>,
    transaction_hash: Option<String>,
}

/// Update env values
///
/// The running app gets them without a restart of the CVM.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/envs", tag = "CVMs", operation_id = "cvms_envs_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = UpdateEnvsRequest,
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 422, description = "Validation error")))]
pub async fn patch(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<UpdateEnvsRequest>,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    let of_a_chain = [&request.compose_hash, &request.transaction_hash];
    if of_a_chain.into_iter().flatten().any(|text| !text.is_empty()) {
        let why = "compose_hash, transaction_hash: this server's KMS is off any chain; leave them out.";
        return Err(Error::new(Code::FeatureMissing, why).into());
    }
    let update = Update { encrypted_env: Some(request.encrypted_env), env_keys: request.env_keys, ..Update::default() };
    let updated = app.control.vm_update(&caller.who, &info, &id, &ops::ENV_UPDATE, update, 202).await?;
    Ok(UpdateAccepted::of(&updated))
}
