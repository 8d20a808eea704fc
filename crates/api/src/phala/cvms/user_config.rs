//! `GET /cvms/{cvm_id}/user_config`: what a CVM's guest is told of itself by its owner's text.
//!
//! The one rule: what came encrypted is not known here. SSH keys that are given as the env value `DSTACK_AUTHORIZED_KEYS`
//! reach the guest and nobody else.

use axum::extract::{Path, State};
use holdfast_model::guest::{UserConfig, hostname};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;
use crate::phala::view;

#[derive(Debug, Serialize, ToSchema)]
pub struct CvmUserConfig {
    /// The guest's host name: that of `user_config`, else the CVM's name.
    pub hostname: Option<String>,
    /// The keys of `user_config`; those of the encrypted env are not known to the server.
    pub ssh_authorized_keys: Vec<String>,
    /// As `user_config` or the compose file has it. There is no gateway that would serve it.
    pub default_gateway_domain: Option<String>,
}

/// Runtime configuration of a CVM
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/user_config", tag = "CVMs", operation_id = "cvms_user_config",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = CvmUserConfig), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<CvmUserConfig>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    let asked = UserConfig::of(cvm.vm.user_config.as_deref());
    let compose: serde_json::Value = serde_json::from_str(&cvm.vm.compose).unwrap_or_default();
    let in_compose = compose["default_gateway_domain"].as_str().map(str::to_owned);
    Ok(Json(CvmUserConfig {
        hostname: Some(asked.hostname.unwrap_or_else(|| hostname(&cvm.vm.name))),
        ssh_authorized_keys: asked.ssh_authorized_keys,
        default_gateway_domain: asked.default_gateway_domain.or(in_compose),
    }))
}
