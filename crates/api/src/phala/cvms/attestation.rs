//! `GET /cvms/{cvm_id}/attestation`: that there is none.
//!
//! The one rule: nothing here claims what no hardware vouches for. A host without a TEE signs nothing, so there is no
//! certificate, no measurement and no event log to show; the compose file is shown as what it is, the server's record.

use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;
use crate::phala::view;

/// What a CVM is told for as long as no hypervisor of this server uses a TEE.
const NO_TEE: &str = "This CVM runs without a TEE: there is no attestation, and whoever operates its host can read it.";

#[derive(Debug, Serialize, ToSchema)]
pub struct CvmAttestation {
    pub name: Option<String>,
    /// The CVM runs and its guest agent has answered.
    pub is_online: bool,
    /// What there is to measure may be shown publicly (`public_tcbinfo`).
    pub is_public: bool,
    /// Always says that there is no TEE.
    pub error: Option<String>,
    /// Always null: nothing signs any.
    #[schema(value_type = Option<Vec<Object>>)]
    pub app_certificates: Option<Vec<serde_json::Value>>,
    /// Always null: nothing is measured.
    #[schema(value_type = Option<Object>)]
    pub tcb_info: Option<serde_json::Value>,
    /// app-compose.json as the server has it; nothing vouches for what the CVM runs.
    pub compose_file: Option<String>,
}

/// Attestation of a CVM
///
/// There is none without a TEE, and `error` says so.
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/attestation", tag = "CVMs", operation_id = "cvms_attestation",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = CvmAttestation), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<CvmAttestation>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(Json(CvmAttestation {
        is_online: cvm.guest().is_ok() && cvm.node_online,
        is_public: cvm.compose.public_tcbinfo,
        error: Some(NO_TEE.to_owned()),
        app_certificates: None,
        tcb_info: None,
        compose_file: Some(cvm.vm.compose),
        name: Some(cvm.vm.name),
    }))
}
