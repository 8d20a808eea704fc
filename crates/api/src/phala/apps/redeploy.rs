//! Going back, or forth, to a revision: of one CVM, or of an app's CVMs.
//!
//! The one rule: what comes back is what the app is made of (app-compose.json, env values, user configuration). The size, the
//! image and the name are the CVM's and stay.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use holdfast_control::apps::Redeployed;
use holdfast_model::error::{Code, Error};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Info, Params, WriteVms};
use crate::json::Json;
use crate::phala::cvms::update::{UpdateAccepted, refuse_chain};
use crate::phala::lenient::MaybeBody;

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct RedeployRevisionRequest {
    /// CVMs of the app; all of them unless told.
    vm_uuids: Option<Vec<String>>,
}

/// What became of a redeployment, CVM by CVM.
#[derive(Debug, Serialize, ToSchema)]
pub struct RedeployAccepted {
    /// Always `in_progress`.
    pub status: &'static str,
    pub message: String,
    /// The first operation that was accepted.
    pub correlation_id: Option<String>,
    pub items: Vec<RedeployedCvm>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RedeployedCvm {
    pub vm_uuid: String,
    /// The CVM's operation; null when it was refused.
    pub correlation_id: Option<String>,
    pub error_code: Option<String>,
    /// Why it was refused.
    pub error: Option<String>,
}

/// Redeploy a revision of an app
///
/// Each CVM gets an operation of its own. One that is busy is passed over and named; when all are, that is the answer.
#[utoipa::path(post, path = "/api/v1/apps/{app_id}/revisions/{revision_id}/redeploy", tag = "Apps",
    operation_id = "apps_redeploy",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id"),
        ("revision_id" = String, Path), ("transaction_hash" = Option<String>, Query, description = "Refused: no chain")),
    request_body = Option<RedeployRevisionRequest>,
    responses((status = 202, body = RedeployAccepted), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"),
        (status = 404, description = "App, revision or CVM not found"), (status = 409, description = "Busy"),
        (status = 422, description = "Validation error")))]
pub async fn of_app(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path((app_id, revision)): Path<(String, String)>,
    params: Params,
    headers: HeaderMap,
    MaybeBody(request): MaybeBody<RedeployRevisionRequest>,
) -> Result<(StatusCode, Json<RedeployAccepted>), Failure> {
    refuse_proof(&params, &headers)?;
    let chosen = request.unwrap_or_default().vm_uuids;
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let done = app.control.app_redeploy(&caller.who, &info, &row, &revision, chosen.as_deref()).await?;
    let items: Vec<_> = done.into_iter().map(item).collect();
    let accepted = items.iter().filter(|item| item.correlation_id.is_some()).count();
    let answer = RedeployAccepted {
        status: "in_progress",
        message: format!("The redeployment was accepted for {accepted} of {} CVMs.", items.len()),
        correlation_id: items.iter().find_map(|item| item.correlation_id.clone()),
        items,
    };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// Redeploy a revision of a CVM's app
#[utoipa::path(post, path = "/api/v1/cvms/{cvm_id}/revisions/{revision_id}/redeploy", tag = "CVMs",
    operation_id = "cvms_redeploy",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name"),
        ("revision_id" = String, Path), ("transaction_hash" = Option<String>, Query, description = "Refused: no chain")),
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM or revision not found"), (status = 409, description = "Busy"),
        (status = 422, description = "Validation error")))]
pub async fn of_cvm(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path((id, revision)): Path<(String, String)>,
    params: Params,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    refuse_proof(&params, &headers)?;
    let updated = app.control.vm_redeploy(&caller.who, &info, &id, &revision).await?;
    Ok(UpdateAccepted::of(&updated))
}

fn item(done: Redeployed) -> RedeployedCvm {
    let (correlation_id, error) = match done.outcome {
        Ok(updated) => (Some(updated.operation.to_string()), None),
        Err(error) => (None, Some(error)),
    };
    RedeployedCvm {
        vm_uuid: done.vm_uuid,
        correlation_id,
        error_code: error.as_ref().map(|e| e.code.phala().unwrap_or(e.code.id()).to_owned()),
        error: error.map(|e| e.message),
    }
}

/// Proofs of a transaction are for apps whose KMS is a contract on a chain.
fn refuse_proof(params: &Params, headers: &HeaderMap) -> Result<(), Error> {
    refuse_chain(headers)?;
    if params.text("transaction_hash").is_some() {
        let why = "transaction_hash: this server's KMS is off any chain; leave it out.";
        return Err(Error::new(Code::FeatureMissing, why));
    }
    Ok(())
}
