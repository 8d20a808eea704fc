//! A VM as the control plane wants it, and the words for what it is doing.
//!
//! ```text
//!            create            agent answers, app up
//!   creating ------> starting ----------------------> running <--- restarting
//!                       |  ^                            |   |
//!          boot failed  |  | power_on          power_off|   | QEMU died
//!                       v  |                            v   v
//!                     error, stopped <-- stopping, shutting_down   exited
//!   any of them --> deleting --> (gone; the row stays for its operations)
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The status a user sees. The words are those that the Phala clients know (contract, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmStatus {
    Creating,
    Starting,
    Running,
    Stopping,
    ShuttingDown,
    Stopped,
    Restarting,
    Updating,
    Deleting,
    Deleted,
    Exited,
    Error,
}

impl VmStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::ShuttingDown => "shutting_down",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
            Self::Updating => "updating",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
            Self::Exited => "exited",
            Self::Error => "error",
        }
    }

    pub const ALL: [Self; 12] = [
        Self::Creating,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::ShuttingDown,
        Self::Stopped,
        Self::Restarting,
        Self::Updating,
        Self::Deleting,
        Self::Deleted,
        Self::Exited,
        Self::Error,
    ];

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

/// What the VM should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Disks exist and QEMU runs, in the epoch that is asked for.
    Running,
    /// Disks exist, no QEMU.
    Stopped,
    /// Nothing of the VM is on the node. A desired state of `Absent` stays as a tombstone.
    Absent,
}

impl RunState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Absent => "absent",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Stopped, Self::Absent].into_iter().find(|s| s.as_str() == text)
    }
}

/// How to stop a VM that is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum StopMode {
    /// The guest agent stops the app, which gets `grace_s` seconds, syncs and powers off. A guest that has not done so
    /// 15 seconds after the grace is killed.
    Graceful { grace_s: u32 },
    /// The same, but nobody kills it: a guest that has not powered off 25 seconds after the grace is left as it is, and
    /// the node says so.
    Asked { grace_s: u32 },
    /// QEMU is killed at once.
    Hard,
}

/// What happens when QEMU ends although the VM should be running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Up to five times with exponential backoff, as dstack-vmm does.
    #[default]
    OnFailure,
    /// It stays `exited`.
    Never,
}

impl RestartPolicy {
    /// Automatic starts after the first one, within one boot epoch.
    pub const MAX_RESTARTS: u32 = 5;

    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnFailure => "on_failure",
            Self::Never => "never",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::OnFailure, Self::Never].into_iter().find(|s| s.as_str() == text)
    }
}

/// One TCP port of the compose file, published on the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Always `tcp` today.
    pub protocol: String,
    /// Address on the node that `host_port` listens on, e.g. `127.0.0.1`.
    pub host_address: String,
    pub host_port: u16,
    /// Port inside the VM that traffic arrives at.
    pub vm_port: u16,
}

/// Ports that the owner chose beside what the compose file publishes. It says what differs from the compose file, so that a
/// compose file which publishes another port later still does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortChoice {
    /// Published although the compose file does not.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub added: BTreeSet<u16>,
    /// Not published although the compose file does.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hidden: BTreeSet<u16>,
}

impl PortChoice {
    /// The choice by which exactly `wanted` is published.
    pub fn of(wanted: &BTreeSet<u16>, by_compose: &BTreeSet<u16>) -> Self {
        Self { added: wanted - by_compose, hidden: by_compose - wanted }
    }

    /// Ports of the VM that are published.
    pub fn published(&self, by_compose: &BTreeSet<u16>) -> BTreeSet<u16> {
        &(by_compose - &self.hidden) | &self.added
    }
}

/// Everything a node needs to build a VM. It holds no secret: env values are ciphertext, keys travel on request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    pub uuid: Uuid,
    pub name: String,
    /// 40 hex digits.
    pub app_id: String,
    /// 40 hex digits.
    pub instance_id: String,
    /// Folder name of the guest image.
    pub image: String,
    pub vcpu: u32,
    pub memory_mb: u64,
    pub disk_gb: u64,
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// sha256 of `app_compose`, 64 hex digits.
    pub compose_hash: String,
    /// The exact bytes of app-compose.json, as text.
    pub app_compose: String,
    /// `eph_pub || iv || ciphertext || tag` in hex; absent when the app has no env.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted_env: Option<String>,
    /// Opaque text for the guest, unmeasured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_config: Option<String>,
    #[serde(default)]
    pub restart_policy: RestartPolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_of_ports_outlives_the_compose_file_it_was_made_on() {
        let set = |ports: &[u16]| ports.iter().copied().collect::<BTreeSet<_>>();
        let choice = PortChoice::of(&set(&[22, 80]), &set(&[80, 5432]));
        assert_eq!(choice.published(&set(&[80, 5432])), set(&[22, 80]));
        // Another port of the app is published, the database still is not.
        assert_eq!(choice.published(&set(&[443, 5432])), set(&[22, 443]));
        assert_eq!(PortChoice::of(&set(&[80]), &set(&[80])), PortChoice::default());
        assert_eq!(serde_json::to_string(&PortChoice::default()).expect("JSON"), "{}");
    }
}
