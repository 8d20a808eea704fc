//! What a node must be told. The one rule: nothing below reads an environment variable or a default path; whoever
//! calls [`crate::run`] decides.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HypervisorKind {
    Qemu,
    /// No VM at all: for load tests and simulations.
    Simulated,
}

/// Start from [`NodeConfig::new`] and change what differs.
#[derive(Clone)]
pub struct NodeConfig {
    /// Address of the control plane, e.g. `http://127.0.0.1:8440`.
    pub server_url: String,
    /// Node token, as issued by `holdfast admin node-token`.
    pub token: String,
    /// Folder of this node alone. VMs live in `vms/` (or `simulated/`) below it.
    pub data_dir: PathBuf,
    /// Folder with one folder per guest image.
    pub image_dir: PathBuf,
    /// Name shown to operators.
    pub name: String,
    pub region: Option<String>,
    pub hypervisor: HypervisorKind,
    /// How long each step of a simulated VM takes.
    pub simulated_step: Duration,
    /// Address of this host that published ports listen on.
    pub publish_address: String,
    /// First and last host port that the server may hand out here, inclusive.
    pub port_range: (u16, u16),
    /// Memory that is not offered to VMs, in MiB.
    pub reserve_memory_mb: u64,
    /// Below this many GB of free disk new VMs are refused.
    pub min_free_disk_gb: u64,
    /// VMs at the most; by default 64, or 10,000 simulated ones.
    pub slots: Option<u32>,
    /// Wait before the first automatic restart of a VM that died; doubled for each further one.
    pub restart_backoff: Duration,
    /// QEMU's binary: a path, or a name that is looked up in `PATH`.
    pub qemu: PathBuf,
    /// How long a probe guest may take to boot under KVM before TCG is used instead.
    pub probe_timeout: Duration,
}

impl NodeConfig {
    pub fn new(server_url: impl Into<String>, token: impl Into<String>, data_dir: PathBuf, image_dir: PathBuf) -> Self {
        Self {
            server_url: server_url.into(),
            token: token.into(),
            data_dir,
            image_dir,
            name: "local".to_owned(),
            region: None,
            hypervisor: HypervisorKind::Qemu,
            simulated_step: Duration::from_millis(10),
            publish_address: "127.0.0.1".to_owned(),
            port_range: (20_000, 29_999),
            reserve_memory_mb: 1024,
            min_free_disk_gb: 5,
            slots: None,
            restart_backoff: Duration::from_secs(5),
            qemu: PathBuf::from("qemu-system-x86_64"),
            probe_timeout: Duration::from_secs(10),
        }
    }
}

impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeConfig")
            .field("server_url", &self.server_url)
            .field("data_dir", &self.data_dir)
            .field("image_dir", &self.image_dir)
            .field("name", &self.name)
            .field("hypervisor", &self.hypervisor)
            .finish_non_exhaustive()
    }
}
