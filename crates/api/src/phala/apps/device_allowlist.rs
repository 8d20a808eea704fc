//! `GET /apps/{app_id}/device-allowlist`: which devices a contract lets the app run on.
//!
//! The one rule: there is no contract, and the answer says so. An empty list under `is_onchain_kms: false` means that no
//! list is kept, not that nothing is allowed.

use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;

/// The devices that an app may run on.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceAllowlistResponse {
    /// Always false: this server's KMS is off any chain, and keeps no list of devices.
    pub is_onchain_kms: bool,
    pub allow_any_device: Option<bool>,
    pub chain_id: Option<i64>,
    pub app_contract_address: Option<String>,
    #[schema(value_type = Vec<Object>)]
    pub devices: Vec<Value>,
}

/// Get the device allow-list of an app
#[utoipa::path(get, path = "/api/v1/apps/{app_id}/device-allowlist", tag = "Apps",
    operation_id = "apps_device_allowlist",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id")),
    responses((status = 200, body = DeviceAllowlistResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "App not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(app_id): Path<String>,
) -> Result<Json<DeviceAllowlistResponse>, Failure> {
    app.control.app_find(&caller.who, &app_id).await?;
    Ok(Json(DeviceAllowlistResponse {
        is_onchain_kms: false,
        allow_any_device: None,
        chain_id: None,
        app_contract_address: None,
        devices: Vec::new(),
    }))
}
