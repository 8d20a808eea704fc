//! The protocol between node and server. Nodes dial in; everything is JSON over HTTP except streams.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /node/v1/register` | [`Register`] | [`Registered`] |
//! | `GET /node/v1/desired?session=S&since=R&wait_s=25` | - | [`DesiredPage`], at once when something is newer than `R`, else when it is or after `wait_s` |
//! | `POST /node/v1/report` | [`Report`] | [`ReportAck`] |
//! | `POST /node/v1/vms/{uuid}/keys` | - | [`crate::guest::Keys`] (never logged, never stored) |
//! | `GET /node/v1/stream?session=S` (WebSocket) | [`StreamRequest`] from the server | [`StreamReply`] from the node |
//!
//! All carry `Authorization: Bearer <node token>`. The one rule: every message states a whole truth (level), never a
//! change (edge), so losing, repeating or reordering any of them changes nothing. `session` names one life of the node
//! process; a message of an older session is answered 409 and the node registers again.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Timestamp;
use crate::guest::{Container, LogOptions, SystemStats};
use crate::image::ImageInfo;
use crate::vm::{RunState, StopMode, VmSpec};

/// How a node runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// A probe guest booted under KVM.
    Kvm,
    /// Emulation: about ten times slower than the host.
    Tcg,
    /// No guest code at all.
    Simulated,
}

impl Accelerator {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Simulated => "simulated",
        }
    }
}

/// What a node has in all, before anything is placed on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Threads of the host; placement multiplies them by the overcommit factor.
    pub vcpu: u32,
    pub memory_mb: u64,
    pub disk_gb: u64,
    /// VMs at the most.
    pub slots: u32,
}

/// What a node has left, measured on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub disk_free_gb: u64,
    /// False when something makes new VMs impossible (no image, no QEMU, disk nearly full).
    pub ready: bool,
    /// Why not, in words for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A node introduces itself. Repeated whenever the server answers 409 to its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Register {
    /// New for each life of the node process.
    pub session: Uuid,
    pub name: String,
    #[serde(default)]
    pub region: Option<String>,
    /// Holdfast version of the node.
    pub version: String,
    /// `qemu` or `simulated`.
    pub hypervisor: String,
    pub hypervisor_version: String,
    pub accelerator: Accelerator,
    /// True only if the host starts VMs inside a TEE.
    pub tee: bool,
    /// The kernel's boot id: a new one means the host was restarted.
    pub boot_id: String,
    pub capacity: Capacity,
    /// Address that published ports listen on.
    pub publish_address: String,
    /// First and last host port that the server may hand out on this node, inclusive.
    pub port_range: (u16, u16),
    pub images: Vec<ImageInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registered {
    pub node: Uuid,
    /// Report at least this often, in seconds.
    pub heartbeat_s: u32,
}

/// What the server wants of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredVm {
    pub uuid: Uuid,
    /// Raised by every change. A node refuses a lower one than it has seen.
    pub generation: u64,
    pub run_state: RunState,
    pub stop: StopMode,
    /// Raised by a start or restart: "running" means running in this epoch. A VM that dies in its epoch is `exited`.
    pub boot_epoch: u64,
    /// Absent in a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<VmSpec>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DesiredPage {
    /// Ask with this as `since` next.
    pub revision: u64,
    /// Every VM of the node whose desired state is newer than `since`; with `since=0` all of them.
    pub vms: Vec<DesiredVm>,
}

/// What a VM is doing on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Disks are being made.
    Preparing,
    /// Disks exist, QEMU is being started.
    Starting,
    /// QEMU runs. `agent` and `boot_progress` say how far the guest is.
    Running,
    /// QEMU runs and is being stopped.
    Stopping,
    /// Disks exist, no QEMU, as desired.
    Stopped,
    /// QEMU ended although it should run.
    Exited,
    /// Nothing is left on the node.
    Absent,
}

impl Phase {
    pub const ALL: [Self; 7] =
        [Self::Preparing, Self::Starting, Self::Running, Self::Stopping, Self::Stopped, Self::Exited, Self::Absent];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
            Self::Absent => "absent",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == text)
    }
}

/// Code of [`Outcome::Failed`]: the guest was only to be asked to power off, and has not done so.
pub const GUEST_STAYS: &str = "guest_stays";
/// Code of [`Outcome::Failed`]: the node's disk is full. It is tried again until there is room. Also the word for a machine
/// that stands still until then, see [`VmReport::paused`].
pub const DISK_FULL: &str = "disk_full";

/// How far the node is with the generation it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Working on it.
    Progress,
    /// The VM is as desired (for `Running`: QEMU runs in the wanted epoch, the guest may still be booting; or it died in
    /// that epoch and stays `exited`, as `phase` then says). The node does nothing more for this generation.
    Applied,
    /// The node gave up on this generation. It tries again by itself only when `retryable`.
    Failed {
        /// Stable word, e.g. `image_missing`, `disk_full`, `qemu_failed`, `port_in_use`.
        code: String,
        /// For the operator; may hold host paths, so it is never shown to a tenant.
        message: String,
        retryable: bool,
    },
}

/// Everything the node knows about one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    pub uuid: Uuid,
    /// The generation that `outcome` is about.
    pub generation: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
    pub phase: Phase,
    /// The epoch that QEMU last ran in.
    pub boot_epoch: u64,
    /// Automatic restarts in this epoch.
    #[serde(default)]
    pub restarts: u32,
    /// The guest agent has answered since QEMU started.
    #[serde(default)]
    pub agent: bool,
    /// dstack's words, see [`crate::guest::BootProgress`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_progress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_error: Option<crate::guest::BootError>,
    /// The generation whose app `boot_progress` and `boot_error` speak of, as the guest says; 0 while it has none.
    #[serde(default)]
    pub app_revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_progress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<Timestamp>,
    /// Why QEMU ended, for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_reason: Option<String>,
    /// True while a backoff runs before the next automatic start.
    #[serde(default)]
    pub will_restart: bool,
    /// Why the machine stands still, in a word: [`DISK_FULL`] while a write of its guest waits for room. Absent while it
    /// runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
}

/// The state of a node and of those of its VMs that changed since the last acknowledged report (all of them in the
/// first report of a session).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub session: Uuid,
    /// Grows with every report of the session. The server ignores a report older than one it has.
    pub seq: u64,
    pub health: Health,
    pub images: Vec<ImageInfo>,
    pub vms: Vec<VmReport>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportAck {
    pub seq: u64,
}

/// Where a log comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The guest's console.
    Serial,
    /// QEMU's own standard output and error.
    Stdout,
    Stderr,
    /// A container, by name or id, read by the guest agent.
    Container(String),
}

/// Server to node on the stream socket, as JSON text frames. `id` is chosen by the server and never used twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum StreamRequest {
    /// Answered by data frames and one [`StreamReply::End`].
    Logs { id: u64, vm: Uuid, source: LogSource, options: LogOptions },
    /// Answered by one [`StreamReply::Containers`].
    Containers { id: u64, vm: Uuid },
    /// Answered by one [`StreamReply::Stats`].
    Stats { id: u64, vm: Uuid },
    /// The node may send `bytes` more data bytes on stream `id`. Every stream begins with [`STREAM_WINDOW`].
    Credit { id: u64, bytes: u64 },
    /// Nobody listens any more. Not answered.
    Close { id: u64 },
}

/// Node to server. Log data travels as binary frames: 8 bytes big-endian `id`, one byte channel
/// (1 stdout, 2 stderr), then the bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum StreamReply {
    Containers {
        id: u64,
        containers: Vec<Container>,
    },
    Stats {
        id: u64,
        stats: Box<SystemStats>,
    },
    End {
        id: u64,
        #[serde(default)]
        error: Option<StreamError>,
    },
}

/// Why a stream ended early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamError {
    /// `no_such_vm`, `no_such_container`, `not_running`, `agent_silent`, `agent_old`, `internal`.
    pub code: String,
    pub message: String,
}

/// Data bytes that a new stream may send before it needs credit.
pub const STREAM_WINDOW: u64 = 256 * 1024;

/// Largest frame on the stream socket, in bytes. A larger one ends the socket, and with it every stream of the node.
pub const STREAM_FRAME: usize = 1024 * 1024;
