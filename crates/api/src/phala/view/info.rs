//! The nested objects of 2026-01-21 and later: a CVM in a list, and the same with its compose file.

use holdfast_model::Timestamp;
use holdfast_model::compose::sha256_hex;
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::nodes::Node;
use holdfast_store::vms::Vm;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Cvm;
use super::parts::CvmNetworkUrls;

/// A CVM (2026-01-21 and later).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMInfo)]
pub struct CvmInfo {
    /// `cvm_...`
    pub id: String,
    pub name: String,
    /// 40 hex digits.
    pub app_id: Option<String>,
    pub vm_uuid: Option<String>,
    pub instance_id: Option<String>,
    pub resource: Resource,
    pub node_info: Option<NodeRef>,
    pub os: Option<Os>,
    /// Always `phala`: this server's own KMS, off any chain.
    pub kms_type: Option<String>,
    pub kms_info: Option<CvmKmsInfo>,
    pub status: String,
    /// True if an operation is currently executing.
    pub in_progress: bool,
    /// The operation that is executing.
    pub progress: Option<Progress>,
    /// sha256 of app-compose.json.
    pub compose_hash: Option<String>,
    /// sha256 of the compose file.
    pub docker_compose_hash: Option<String>,
    /// sha256 of the pre-launch script.
    pub pre_launch_script_hash: Option<String>,
    pub gateway: Gateway,
    pub logs: LogUrls,
    #[schema(value_type = Vec<Object>)]
    pub services: Vec<serde_json::Value>,
    /// One entry per published port.
    pub endpoints: Option<Vec<CvmNetworkUrls>>,
    pub public_logs: bool,
    pub public_sysinfo: bool,
    pub public_tcbinfo: bool,
    pub gateway_enabled: bool,
    pub secure_time: bool,
    pub storage_fs: String,
    pub workspace: Option<WorkspaceRef>,
    pub creator: Option<UserRef>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deleted_at: Option<Timestamp>,
    pub listed: bool,
    pub project_type: Option<String>,
}

/// A CVM with its compose file (2026-01-21 and later).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMInfoDetail)]
pub struct CvmInfoDetail {
    #[serde(flatten)]
    pub info: CvmInfo,
    /// app-compose.json.
    #[schema(value_type = Option<Object>)]
    pub compose_file: Option<Box<RawValue>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMResourceInfo)]
pub struct Resource {
    pub instance_type: Option<String>,
    pub vcpu: Option<i64>,
    pub memory_in_gb: Option<f64>,
    pub disk_in_gb: Option<i64>,
    pub gpus: Option<i64>,
    /// A decimal number as text.
    pub compute_billing_price: Option<String>,
    /// `skip`, `hourly` or `monthly`.
    pub billing_period: Option<String>,
}

impl Resource {
    pub fn of(vm: &Vm) -> Self {
        Self {
            instance_type: vm.instance_type.clone(),
            vcpu: Some(vm.vcpu),
            memory_in_gb: Some(vm.memory_mb as f64 / 1024.0),
            disk_in_gb: Some(vm.disk_gb),
            gpus: Some(0),
            compute_billing_price: Some("0".to_owned()),
            billing_period: Some("skip".to_owned()),
        }
    }
}

/// A node inside another object.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeRef {
    /// Always `node`.
    pub object_type: &'static str,
    pub id: Option<i64>,
    pub node_id: Option<i64>,
    pub name: Option<String>,
    pub region: Option<String>,
    pub device_id: Option<String>,
    pub ppid: Option<String>,
    /// `ONLINE`, `OFFLINE` or `MAINTENANCE`.
    pub status: Option<String>,
    pub version: Option<String>,
}

impl NodeRef {
    /// A node by itself; one that takes no new CVMs is in maintenance.
    pub fn of(node: &Node, online: bool) -> Self {
        let status = match (online, node.cordoned) {
            (false, _) => "OFFLINE",
            (true, true) => "MAINTENANCE",
            (true, false) => "ONLINE",
        };
        Self {
            object_type: "node",
            id: Some(node.id),
            node_id: Some(node.id),
            name: Some(node.name.clone()),
            region: node.region.clone(),
            device_id: None,
            ppid: None,
            status: Some(status.to_owned()),
            version: Some(node.version.clone()),
        }
    }

    fn of_cvm(cvm: &Cvm) -> Self {
        let vm = &cvm.vm;
        Self {
            object_type: "node",
            id: Some(vm.node_id),
            node_id: Some(vm.node_id),
            name: Some(vm.node_name.clone()),
            region: vm.node_region.clone(),
            device_id: None,
            ppid: None,
            status: Some(if cvm.node_online { "ONLINE" } else { "OFFLINE" }.to_owned()),
            version: Some(vm.node_version.clone()),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMOSInfo)]
pub struct Os {
    pub name: Option<String>,
    pub version: Option<String>,
    pub is_dev: Option<bool>,
    pub os_image_hash: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMKmsInfo)]
pub struct CvmKmsInfo {
    pub chain_id: Option<i64>,
    pub dstack_kms_address: Option<String>,
    pub dstack_app_address: Option<String>,
    pub deployer_address: Option<String>,
    pub rpc_endpoint: Option<String>,
    /// X25519 key that env values are encrypted to, 64 hex digits.
    pub encrypted_env_pubkey: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMProgressInfo)]
pub struct Progress {
    /// Status that the operation leads to.
    pub target: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// The operation's id.
    pub correlation_id: Option<String>,
}

impl Progress {
    pub fn of(vm: &Vm) -> Option<Self> {
        vm.in_progress().then(|| Self {
            target: vm.operation_target.clone(),
            started_at: vm.operation_created_at.map(Timestamp),
            correlation_id: vm.operation_uuid.clone(),
        })
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMGatewayInfo)]
pub struct Gateway {
    pub base_domain: Option<String>,
    pub cname: Option<String>,
}

/// Absolute URLs of logs, readable without a key for a while.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CVMLogUrls)]
pub struct LogUrls {
    pub serial: Option<String>,
    pub stdout: Option<String>,
    pub stderr: Option<String>,
    /// Append `/` with a container's name, and the query of `serial`.
    pub container_log_base: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceRef {
    /// Always `workspace`.
    pub object_type: &'static str,
    /// `wks_...`
    pub id: String,
    pub name: String,
    pub slug: Option<String>,
    pub avatar_url: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct UserRef {
    /// Always `user`.
    pub object_type: &'static str,
    /// `usr_...`
    pub id: Option<String>,
    pub username: Option<String>,
    pub avatar_url: Option<String>,
}

impl CvmInfo {
    pub fn of(cvm: &Cvm) -> Self {
        let (vm, compose) = (&cvm.vm, &cvm.compose);
        Self {
            id: cvm.hashid(),
            name: vm.name.clone(),
            app_id: Some(vm.app_id.clone()),
            vm_uuid: Some(vm.uuid.clone()),
            instance_id: Some(vm.instance_id.clone()),
            resource: Resource::of(vm),
            node_info: Some(NodeRef::of_cvm(cvm)),
            os: Some(Os {
                name: Some(vm.image.clone()),
                version: cvm.image.as_ref().map(|i| i.version.clone()),
                is_dev: cvm.image.as_ref().map(|i| i.is_dev),
                os_image_hash: vm.os_image_hash.clone(),
            }),
            kms_type: Some("phala".to_owned()),
            kms_info: Some(CvmKmsInfo {
                chain_id: None,
                dstack_kms_address: None,
                dstack_app_address: None,
                deployer_address: None,
                rpc_endpoint: None,
                encrypted_env_pubkey: Some(cvm.env_public_key.clone()),
            }),
            status: cvm.status.to_owned(),
            in_progress: vm.in_progress(),
            progress: Progress::of(vm),
            compose_hash: Some(vm.compose_hash.clone()),
            docker_compose_hash: compose.docker_compose_file.as_deref().map(sha256_hex),
            pre_launch_script_hash: compose.pre_launch_script.as_deref().map(sha256_hex),
            gateway: Gateway { base_domain: None, cname: None },
            logs: LogUrls {
                serial: Some(format!("{}&ch=serial", cvm.log_url)),
                stdout: Some(format!("{}&ch=stdout", cvm.log_url)),
                stderr: Some(format!("{}&ch=stderr", cvm.log_url)),
                container_log_base: cvm.log_url.split_once('?').map(|(base, _)| base.to_owned()),
            },
            services: Vec::new(),
            endpoints: Some(cvm.public_urls.clone()),
            public_logs: compose.public_logs,
            public_sysinfo: compose.public_sysinfo,
            public_tcbinfo: compose.public_tcbinfo,
            gateway_enabled: compose.gateway_enabled,
            secure_time: compose.secure_time,
            storage_fs: compose.storage_fs.clone().unwrap_or_else(|| "ext4".to_owned()),
            workspace: Some(WorkspaceRef {
                object_type: "workspace",
                id: hashid::encode(Prefix::Workspace, vm.workspace_id),
                name: vm.workspace_name.clone(),
                slug: Some(vm.workspace_slug.clone()),
                avatar_url: None,
            }),
            creator: Some(UserRef {
                object_type: "user",
                id: Some(hashid::encode(Prefix::User, vm.created_by)),
                username: Some(vm.creator_name.clone()),
                avatar_url: None,
            }),
            created_at: Some(Timestamp(vm.created_at)),
            deleted_at: vm.deleted_at.map(Timestamp),
            listed: vm.listed,
            project_type: None,
        }
    }
}

impl CvmInfoDetail {
    pub fn of(cvm: &Cvm) -> Self {
        Self { info: CvmInfo::of(cvm), compose_file: Some(cvm.app_compose()) }
    }
}
