//! The flat objects of 2025-10-28: one CVM in detail, and a CVM inside an app.

use holdfast_control::Control;
use holdfast_control::deploy::KMS_SLUG;
use holdfast_model::Timestamp;
use holdfast_model::hashid::{self, Prefix};
use serde::Serialize;
use utoipa::ToSchema;

use super::parts::{CvmNetworkUrls, CvmNode, KmsInfo};
use super::{Cvm, kms_id, kms_info};

/// Detailed CVM information (2025-10-28).
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmBasicInfo {
    /// Internal CVM id.
    pub id: i64,
    /// Node id.
    pub teepod_id: Option<i64>,
    /// Node metadata.
    pub teepod: Option<CvmNode>,
    pub name: String,
    /// Current status: running, stopped, starting, ...
    pub status: String,
    /// True if an operation is currently executing.
    pub in_progress: bool,
    /// 40 hex digits.
    pub app_id: String,
    pub vm_uuid: Option<String>,
    pub instance_id: Option<String>,
    pub vcpu: i64,
    /// MB.
    pub memory: i64,
    /// GB.
    pub disk_size: i64,
    /// OS image name.
    pub base_image: Option<String>,
    /// X25519 key that env values are encrypted to, 64 hex digits.
    pub encrypted_env_pubkey: Option<String>,
    pub listed: bool,
    /// The app's id, `prj_...`.
    pub project_id: Option<String>,
    pub project_type: Option<String>,
    pub instance_type: Option<String>,
    pub public_sysinfo: Option<bool>,
    pub public_logs: Option<bool>,
    pub dapp_dashboard_url: Option<String>,
    /// Where the serial log is read; a query has begun, `&ch=stdout` picks another channel.
    pub syslog_endpoint: Option<String>,
    pub kms_info: Option<KmsInfo>,
    pub contract_address: Option<String>,
    pub deployer_address: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub scheduled_delete_at: Option<Timestamp>,
    /// One entry per published port.
    pub public_urls: Option<Vec<CvmNetworkUrls>>,
    pub gateway_domain: Option<String>,
}

impl CvmBasicInfo {
    pub fn of(control: &Control, cvm: &Cvm) -> Self {
        let vm = &cvm.vm;
        Self {
            id: vm.id,
            teepod_id: Some(vm.node_id),
            teepod: Some(CvmNode::of(vm)),
            name: vm.name.clone(),
            status: cvm.status.to_owned(),
            in_progress: vm.in_progress(),
            app_id: vm.app_id.clone(),
            vm_uuid: Some(vm.uuid.clone()),
            instance_id: Some(vm.instance_id.clone()),
            vcpu: vm.vcpu,
            memory: vm.memory_mb,
            disk_size: vm.disk_gb,
            base_image: Some(vm.image.clone()),
            encrypted_env_pubkey: Some(cvm.env_public_key.clone()),
            listed: vm.listed,
            project_id: Some(hashid::encode(Prefix::App, vm.app_row)),
            project_type: None,
            instance_type: vm.instance_type.clone(),
            public_sysinfo: Some(cvm.compose.public_sysinfo),
            public_logs: Some(cvm.compose.public_logs),
            dapp_dashboard_url: None,
            syslog_endpoint: Some(cvm.log_url.clone()),
            kms_info: Some(kms_info(control)),
            contract_address: None,
            deployer_address: None,
            scheduled_delete_at: vm.scheduled_delete_at.map(Timestamp),
            public_urls: Some(cvm.public_urls.clone()),
            gateway_domain: None,
        }
    }
}

/// A CVM of an app (2025-10-28).
#[derive(Debug, Serialize, ToSchema)]
pub struct AppCvmBasicInfo {
    pub vm_uuid: Option<String>,
    /// 40 hex digits.
    pub app_id: String,
    pub name: String,
    pub status: String,
    pub vcpu: i64,
    /// MB.
    pub memory: i64,
    /// GB.
    pub disk_size: i64,
    pub teepod_id: i64,
    pub teepod_name: String,
    pub region_identifier: Option<String>,
    pub kms_type: Option<String>,
    pub kms_slug: Option<String>,
    pub kms_id: Option<String>,
    pub instance_type: Option<String>,
    pub listed: Option<bool>,
    pub base_image: Option<String>,
    pub instance_id: Option<String>,
    pub machine_info: Option<MachineInfo>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
}

/// The size of a CVM.
#[derive(Debug, Serialize, ToSchema)]
pub struct MachineInfo {
    pub vcpu: i64,
    /// MB.
    pub memory: i64,
    /// GB.
    pub disk_size: i64,
    pub gpu_count: i64,
}

impl AppCvmBasicInfo {
    pub fn of(cvm: &Cvm) -> Self {
        let vm = &cvm.vm;
        Self {
            vm_uuid: Some(vm.uuid.clone()),
            app_id: vm.app_id.clone(),
            name: vm.name.clone(),
            status: cvm.status.to_owned(),
            vcpu: vm.vcpu,
            memory: vm.memory_mb,
            disk_size: vm.disk_gb,
            teepod_id: vm.node_id,
            teepod_name: vm.node_name.clone(),
            region_identifier: vm.node_region.clone(),
            kms_type: Some("phala".to_owned()),
            kms_slug: Some(KMS_SLUG.to_owned()),
            kms_id: Some(kms_id()),
            instance_type: vm.instance_type.clone(),
            listed: Some(vm.listed),
            base_image: Some(vm.image.clone()),
            instance_id: Some(vm.instance_id.clone()),
            machine_info: Some(MachineInfo {
                vcpu: vm.vcpu,
                memory: vm.memory_mb,
                disk_size: vm.disk_gb,
                gpu_count: 0,
            }),
            updated_at: Some(Timestamp(vm.updated_at)),
        }
    }
}
