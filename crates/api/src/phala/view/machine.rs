//! The VM object: what commit and the power routes answer.

use holdfast_model::Timestamp;
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::vms::Vm;
use serde::Serialize;
use utoipa::ToSchema;

use super::Cvm;
use super::parts::CvmNode;
use crate::phala::version::Version;

/// An id whose type depends on the schema version: clients of either kind refuse the other.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum VmId {
    /// Up to 2026-01-21.
    Integer(i64),
    /// From 2026-05-22: `cvm_...`.
    Hashid(String),
}

impl VmId {
    pub fn of(vm: &Vm, version: Version) -> Self {
        match version {
            Version::V20251028 | Version::V20260121 => Self::Integer(vm.id),
            Version::V20260522 | Version::V20260623 => Self::Hashid(hashid::encode(Prefix::Cvm, vm.id)),
        }
    }
}

/// A CVM after a request that changes it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VM)]
pub struct Machine {
    pub id: VmId,
    pub name: String,
    pub status: String,
    /// Node id.
    pub teepod_id: i64,
    pub teepod: Option<CvmNode>,
    pub user_id: Option<i64>,
    /// 40 hex digits.
    pub app_id: String,
    pub vm_uuid: Option<String>,
    pub instance_id: Option<String>,
    /// The first published URL.
    pub app_url: Option<String>,
    /// Name of the OS image.
    pub base_image: Option<String>,
    pub vcpu: i64,
    /// MB.
    pub memory: i64,
    /// GB.
    pub disk_size: i64,
    pub manifest_version: Option<i64>,
    pub version: Option<String>,
    pub runner: Option<String>,
    pub docker_compose_file: Option<String>,
    pub features: Option<Vec<String>>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// X25519 key that env values are encrypted to, 64 hex digits.
    pub encrypted_env_pubkey: Option<String>,
}

impl Machine {
    pub fn of(cvm: &Cvm, version: Version) -> Self {
        let vm = &cvm.vm;
        Self {
            id: VmId::of(vm, version),
            name: vm.name.clone(),
            status: cvm.status.to_owned(),
            teepod_id: vm.node_id,
            teepod: Some(CvmNode::of(vm)),
            user_id: Some(vm.created_by),
            app_id: vm.app_id.clone(),
            vm_uuid: Some(vm.uuid.clone()),
            instance_id: Some(vm.instance_id.clone()),
            app_url: cvm.public_urls.first().map(|urls| urls.app.clone()),
            base_image: Some(vm.image.clone()),
            vcpu: vm.vcpu,
            memory: vm.memory_mb,
            disk_size: vm.disk_gb,
            manifest_version: Some(i64::from(cvm.compose.manifest_version)),
            version: None,
            runner: Some(cvm.compose.runner.clone()),
            docker_compose_file: cvm.docker_compose_file(),
            features: Some(cvm.compose.features.clone()),
            created_at: Timestamp(vm.created_at),
            encrypted_env_pubkey: Some(cvm.env_public_key.clone()),
        }
    }
}
