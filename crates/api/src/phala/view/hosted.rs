//! The list item of 2025-10-28: a CVM around what its node says of it.

use holdfast_control::Control;
use holdfast_model::hashid::{self, Prefix};
use holdfast_model::vm::PortMapping;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::parts::{CvmNetworkUrls, CvmNode, GuestEvent, KmsInfo};
use super::{Cvm, kms_info};

/// A CVM in a list (2025-10-28).
#[derive(Debug, Serialize, ToSchema)]
pub struct HostedCvm {
    pub hosted: VmInfo,
    pub name: String,
    pub managed_user: Option<ManagedUser>,
    pub node: Option<CvmNode>,
    pub listed: bool,
    pub status: String,
    /// True if an operation is currently executing.
    pub in_progress: bool,
    pub dapp_dashboard_url: Option<String>,
    /// Where the serial log is read; a query has begun, `&ch=stdout` picks another channel.
    pub syslog_endpoint: Option<String>,
    pub allow_upgrade: bool,
    /// The app's id, `prj_...`.
    pub project_id: Option<String>,
    pub project_type: Option<String>,
    pub billing_period: Option<String>,
    pub kms_info: Option<KmsInfo>,
    pub contract_address: Option<String>,
    pub deployer_address: Option<String>,
    pub vcpu: Option<i64>,
    /// MB.
    pub memory: Option<i64>,
    /// GB.
    pub disk_size: Option<i64>,
    pub gateway_domain: Option<String>,
    /// One entry per published port.
    pub public_urls: Vec<CvmNetworkUrls>,
}

/// Who made a CVM.
#[derive(Debug, Serialize, ToSchema)]
pub struct ManagedUser {
    pub id: i64,
    pub username: String,
}

/// A CVM as dstack describes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct VmInfo {
    /// The VM's UUID.
    pub id: String,
    pub name: String,
    pub status: String,
    /// `1h 2m 3s`, or `never` while it does not run.
    pub uptime: String,
    pub app_url: Option<String>,
    pub app_id: String,
    pub instance_id: Option<String>,
    pub configuration: Option<VmConfiguration>,
    pub exited_at: Option<String>,
    pub boot_progress: Option<String>,
    /// The step that failed, and why; or why the machine stands still.
    pub boot_error: Option<String>,
    pub shutdown_progress: Option<String>,
    pub image_version: Option<String>,
    pub events: Vec<GuestEvent>,
}

/// What a CVM was made of.
#[derive(Debug, Serialize, ToSchema)]
pub struct VmConfiguration {
    pub name: String,
    pub image: String,
    /// app-compose.json.
    #[schema(value_type = Object)]
    pub compose_file: Box<RawValue>,
    pub vcpu: i64,
    /// MB.
    pub memory: i64,
    /// GB.
    pub disk_size: i64,
    pub ports: Option<Vec<PublishedPort>>,
    /// Always null: ciphertext is for the guest only.
    pub encrypted_env: Option<String>,
    pub app_id: Option<String>,
    pub user_config: Option<String>,
    pub hugepages: bool,
    pub pin_numa: bool,
    pub gpus: GpuConfig,
    pub kms_urls: Vec<String>,
    pub gateway_urls: Vec<String>,
}

/// A port of the node that leads into the CVM.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PortMapping)]
pub struct PublishedPort {
    pub protocol: String,
    pub host_port: u16,
    pub vm_port: u16,
    pub host_address: Option<String>,
}

impl From<&PortMapping> for PublishedPort {
    fn from(port: &PortMapping) -> Self {
        Self {
            protocol: port.protocol.clone(),
            host_port: port.host_port,
            vm_port: port.vm_port,
            host_address: Some(port.host_address.clone()),
        }
    }
}

/// GPUs of a CVM: none.
#[derive(Debug, Serialize, ToSchema)]
pub struct GpuConfig {
    #[schema(value_type = Vec<Object>)]
    pub gpus: Vec<serde_json::Value>,
    pub attach_mode: &'static str,
}

impl HostedCvm {
    pub fn of(control: &Control, cvm: &Cvm, events: Vec<GuestEvent>) -> Self {
        let vm = &cvm.vm;
        Self {
            hosted: VmInfo::of(cvm, events),
            name: vm.name.clone(),
            managed_user: Some(ManagedUser { id: vm.created_by, username: vm.creator_name.clone() }),
            node: Some(CvmNode::of(vm)),
            listed: vm.listed,
            status: cvm.status.to_owned(),
            in_progress: vm.in_progress(),
            dapp_dashboard_url: None,
            syslog_endpoint: Some(cvm.log_url.clone()),
            allow_upgrade: false,
            project_id: Some(hashid::encode(Prefix::App, vm.app_row)),
            project_type: None,
            billing_period: Some("skip".to_owned()),
            kms_info: Some(kms_info(control)),
            contract_address: None,
            deployer_address: None,
            vcpu: Some(vm.vcpu),
            memory: Some(vm.memory_mb),
            disk_size: Some(vm.disk_gb),
            gateway_domain: None,
            public_urls: cvm.public_urls.clone(),
        }
    }
}

impl VmInfo {
    fn of(cvm: &Cvm, events: Vec<GuestEvent>) -> Self {
        let vm = &cvm.vm;
        Self {
            id: vm.uuid.clone(),
            name: vm.name.clone(),
            status: cvm.status.to_owned(),
            uptime: cvm.uptime(),
            app_url: cvm.public_urls.first().map(|urls| urls.app.clone()),
            app_id: vm.app_id.clone(),
            instance_id: Some(vm.instance_id.clone()),
            configuration: Some(VmConfiguration {
                name: vm.name.clone(),
                image: vm.image.clone(),
                compose_file: cvm.app_compose(),
                vcpu: vm.vcpu,
                memory: vm.memory_mb,
                disk_size: vm.disk_gb,
                ports: Some(cvm.ports.iter().map(PublishedPort::from).collect()),
                encrypted_env: None,
                app_id: Some(vm.app_id.clone()),
                user_config: vm.user_config.clone(),
                hugepages: false,
                pin_numa: false,
                gpus: GpuConfig { gpus: Vec::new(), attach_mode: "listed" },
                kms_urls: Vec::new(),
                gateway_urls: Vec::new(),
            }),
            exited_at: cvm.exited_at(),
            boot_progress: cvm.boot_progress(),
            boot_error: cvm.boot_error(),
            shutdown_progress: cvm.shutdown_progress(),
            image_version: cvm.image.as_ref().map(|image| image.version.clone()),
            events,
        }
    }
}
