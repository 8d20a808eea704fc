//! Where a CVM is reached: `GET /cvms/{cvm_id}/network` and `/network-config`.
//!
//! The one rule: only what is there is named. There is no gateway between a CVM and the world, so there are no gateway
//! URLs, no handshake, and no address of the CVM by which anybody could reach it; keys come from the CVM's node, so there
//! are no KMS URLs either. Asking for any of them is refused.

use axum::extract::{Path, State};
use holdfast_control::update::Update;
use holdfast_engine::ops;
use holdfast_model::error::{Code, Error};
use holdfast_model::vm::PortMapping;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Read, WriteVms};
use crate::json::Json;
use crate::phala::lenient::Flag;
use crate::phala::view::parts::CvmNetworkUrls;
use crate::phala::view::{self, Cvm};

/// Where a CVM is reached.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmNetwork {
    /// The CVM runs and its guest agent has answered.
    pub is_online: bool,
    /// Published ports are open to everybody who reaches the node.
    pub is_public: bool,
    /// Why it is not online.
    pub error: Option<String>,
    /// Always null: CVMs are reached at their published ports only.
    pub internal_ip: Option<String>,
    /// Always null: there is no gateway.
    pub latest_handshake: Option<String>,
    /// One entry per published port.
    pub public_urls: Option<Vec<CvmNetworkUrls>>,
}

/// What leads to a CVM.
#[derive(Debug, Serialize, ToSchema)]
pub struct NetworkConfigResponse {
    /// Always empty: there is no gateway.
    pub gateway_urls: Vec<String>,
    /// Always empty: a CVM gets its keys through its node.
    pub kms_urls: Vec<String>,
    pub ports: Vec<NetworkConfigPortMappingEntry>,
}

/// A port of the node that leads into the CVM.
#[derive(Debug, Serialize, ToSchema)]
pub struct NetworkConfigPortMappingEntry {
    pub host_address: String,
    pub host_port: u16,
    /// Always `tcp`.
    pub protocol: String,
    pub vm_port: u16,
}

impl From<&PortMapping> for NetworkConfigPortMappingEntry {
    fn from(port: &PortMapping) -> Self {
        Self {
            host_address: port.host_address.clone(),
            host_port: port.host_port,
            protocol: port.protocol.clone(),
            vm_port: port.vm_port,
        }
    }
}

impl NetworkConfigResponse {
    fn of(cvm: &Cvm) -> Self {
        Self { gateway_urls: Vec::new(), kms_urls: Vec::new(), ports: cvm.ports.iter().map(Into::into).collect() }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct UpdateNetworkConfigRequest {
    /// Refused unless empty: there is no gateway.
    gateway_urls: Option<Vec<String>>,
    /// Refused unless empty: a CVM gets its keys through its node.
    kms_urls: Option<Vec<String>>,
    /// Restart the CVM.
    #[schema(value_type = Option<bool>)]
    restart: Option<Flag>,
}

/// Where a CVM is reached
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/network", tag = "CVMs", operation_id = "cvms_network",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = CvmNetwork), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<CvmNetwork>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    let error = match cvm.guest() {
        Ok(_) if cvm.node_online => None,
        Ok(_) => Some("The CVM's node is not connected.".to_owned()),
        Err(why) => Some(why),
    };
    Ok(Json(CvmNetwork {
        is_online: error.is_none(),
        is_public: true,
        error,
        internal_ip: None,
        latest_handshake: None,
        public_urls: Some(cvm.public_urls),
    }))
}

/// What leads to a CVM
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/network-config", tag = "CVMs", operation_id = "cvms_network_config",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = NetworkConfigResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn config(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<NetworkConfigResponse>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    Ok(Json(NetworkConfigResponse::of(&view::load_one(&app.control, vm).await?)))
}

/// Restart a CVM with its network configuration
///
/// There is nothing else of it to change here: ports are at `PUT /cvms/{cvm_id}/ports`.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/network-config", tag = "CVMs",
    operation_id = "cvms_network_config_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = UpdateNetworkConfigRequest,
    responses((status = 200, body = NetworkConfigResponse), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy, or not running"), (status = 422, description = "Validation error")))]
pub async fn patch(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<UpdateNetworkConfigRequest>,
) -> Result<Json<NetworkConfigResponse>, Failure> {
    let given = |urls: &Option<Vec<String>>| urls.as_ref().is_some_and(|urls| !urls.is_empty());
    if given(&request.gateway_urls) {
        return Err(Error::new(Code::FeatureMissing, "gateway_urls: this server has no gateway for CVMs.").into());
    }
    if given(&request.kms_urls) {
        let why = "kms_urls: CVMs get their keys through their node; another KMS cannot be named.";
        return Err(Error::new(Code::FeatureMissing, why).into());
    }
    let vm = if request.restart.is_some_and(|flag| flag.0) {
        app.control.vm_restart(&caller.who, &info, &id, false).await?
    } else {
        // An operation that is over at once, as of every update that changes nothing.
        app.control.vm_update(&caller.who, &info, &id, &ops::UPDATE, Update::default(), 200).await?.vm
    };
    Ok(Json(NetworkConfigResponse::of(&view::load_one(&app.control, vm).await?)))
}
