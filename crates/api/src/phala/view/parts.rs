//! Small objects that several shapes share.

use holdfast_store::vms::{Vm, VmEvent};
use serde::Serialize;
use utoipa::ToSchema;

/// KMS instance information.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = KMSInfo)]
pub struct KmsInfo {
    /// Hashed KMS identifier (`kms_...`).
    pub id: String,
    /// Human-readable KMS name.
    pub slug: Option<String>,
    /// KMS endpoint URL.
    pub url: String,
    /// KMS software version.
    pub version: String,
    /// Chain id if on-chain; this server's own KMS is not.
    pub chain_id: Option<i64>,
    /// Smart contract address if on-chain.
    pub kms_contract_address: Option<String>,
    /// Gateway application id.
    pub gateway_app_id: Option<String>,
}

/// Public URLs of one published port.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CvmNetworkUrls {
    pub app: String,
    pub instance: String,
}

/// The node a CVM is on.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CvmNode {
    pub id: i64,
    pub name: String,
    pub region_identifier: Option<String>,
}

impl CvmNode {
    pub fn of(vm: &Vm) -> Self {
        Self { id: vm.node_id, name: vm.node_name.clone(), region_identifier: vm.node_region.clone() }
    }
}

/// Something that happened to a CVM outside of its operations.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GuestEvent {
    pub event: String,
    pub body: String,
    /// Unix time in milliseconds.
    pub timestamp: i64,
}

impl From<VmEvent> for GuestEvent {
    fn from(event: VmEvent) -> Self {
        Self { event: event.event, body: event.body, timestamp: event.at.div_euclid(1000) }
    }
}
