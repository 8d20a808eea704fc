//! `GET` and `PUT /cvms/{cvm_id}/ports`: which ports of a CVM are published, and where.
//!
//! The one rule: the host port is ours to choose and stays with its port of the CVM for as long as that is published. What
//! is put replaces the whole set, as one operation; what it says beside the compose file is kept through later updates of
//! that file.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use holdfast_control::update::Update;
use holdfast_engine::ops;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_model::vm::PortMapping;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Read, WriteVms};
use crate::json::Json;
use crate::phala::lenient::Integer;
use crate::phala::view::{self, Cvm};

/// A published port of a CVM.
#[derive(Debug, Serialize, ToSchema)]
pub struct PortMappingResponse {
    /// `pm_...`
    pub id: String,
    pub host_port: u16,
    pub vm_port: u16,
    /// Always `tcp`.
    pub protocol: String,
    pub host_address: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct UpdatePortMappingsRequest {
    ports: Vec<PortMappingEntry>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct PortMappingEntry {
    /// `tcp` (default). There is no publishing of `udp` ports here.
    protocol: Option<String>,
    /// Port of the CVM: one that a compose service publishes inside it, or one of the CVM itself.
    #[schema(value_type = i64, minimum = 1, maximum = 65535)]
    vm_port: Integer,
}

fn answer(cvm: &Cvm) -> Json<Vec<PortMappingResponse>> {
    let node = cvm.vm.node_id;
    let port = |port: &PortMapping| PortMappingResponse {
        // A node's port belongs to one CVM at a time.
        id: hashid::encode(Prefix::PortMapping, (node << 16) | i64::from(port.host_port)),
        host_port: port.host_port,
        vm_port: port.vm_port,
        protocol: port.protocol.clone(),
        host_address: port.host_address.clone(),
    };
    Json(cvm.ports.iter().map(port).collect())
}

/// Published ports of a CVM
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/ports", tag = "CVMs", operation_id = "cvms_ports",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = Vec<PortMappingResponse>), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<Vec<PortMappingResponse>>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    Ok(answer(&view::load_one(&app.control, vm).await?))
}

/// Choose the published ports of a CVM
///
/// The whole set. A CVM that runs starts anew when it is another one. Ports that the compose file publishes and that are left
/// out stay unpublished, and added ones published, through later updates of the compose file; putting the compose file's own
/// set ends that.
#[utoipa::path(put, path = "/api/v1/cvms/{cvm_id}/ports", tag = "CVMs", operation_id = "cvms_ports_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = UpdatePortMappingsRequest,
    responses((status = 200, body = Vec<PortMappingResponse>), (status = 400, description = "It cannot be had"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 422, description = "Validation error")))]
pub async fn put(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<UpdatePortMappingsRequest>,
) -> Result<Json<Vec<PortMappingResponse>>, Failure> {
    let wanted =
        request.ports.iter().enumerate().map(|(i, entry)| port(i, entry)).collect::<Result<BTreeSet<_>, _>>()?;
    let update = Update { ports: Some(wanted), ..Update::default() };
    let updated = app.control.vm_update(&caller.who, &info, &id, &ops::PORTS_UPDATE, update, 200).await?;
    Ok(answer(&view::load_one(&app.control, updated.vm).await?))
}

fn port(index: usize, entry: &PortMappingEntry) -> Result<u16, Error> {
    let wrong = |field: &str, kind: &str, why: &str| Error::field("body", &format!("ports.{index}.{field}"), kind, why);
    match entry.protocol.as_deref() {
        None | Some("tcp") => {}
        Some("udp") => return Err(Error::new(Code::FeatureMissing, "protocol: this server publishes TCP ports only.")),
        Some(_) => return Err(wrong("protocol", "string_pattern_mismatch", "must be tcp or udp")),
    }
    match u16::try_from(entry.vm_port.0) {
        Ok(port @ 1..) => Ok(port),
        Err(_) if entry.vm_port.0 > 0 => Err(wrong("vm_port", "less_than_equal", "must be at most 65535")),
        _ => Err(wrong("vm_port", "greater_than_equal", "must be at least 1")),
    }
}
