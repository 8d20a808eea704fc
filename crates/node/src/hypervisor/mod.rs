//! What runs VMs on a host, behind one trait: `qemu` runs real ones, `simulated` only pretends.
//!
//! The one rule: every method may be called again after it was interrupted anywhere, and then finishes the job. The
//! caller writes down what it is about to do; the hypervisor can find out from the host alone what was really done.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_model::guest::{Container, Keys, LogOptions, SystemStats};
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{Accelerator, Capacity, DISK_FULL, DesiredVm, Health, LogSource, StreamError};
use holdfast_model::vm::VmSpec;
use tokio::sync::watch;
use uuid::Uuid;

use crate::record::{GuestView, Process, Records, Runtime};

pub mod qemu;
pub mod simulated;

/// Why a step failed, in stable words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Fault {
    /// `image_missing`, `disk_full`, `disk_shrink`, `port_in_use`, `qemu_missing`, `qemu_failed`, `bad_spec`, `kill_failed`, `io`.
    pub code: &'static str,
    /// For the operator; may hold host paths.
    pub message: String,
    /// The same step may work later although nothing is changed.
    pub retryable: bool,
}

impl Fault {
    /// A step that may work later.
    pub fn passing(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retryable: true }
    }

    /// A step that cannot work as it is asked for.
    pub fn lasting(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retryable: false }
    }

    /// An operating system error; a full disk is told apart from the rest.
    pub fn os(what: &str, error: &std::io::Error) -> Self {
        let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        Self::passing(if full { DISK_FULL } else { "io" }, format!("{what}: {error}"))
    }
}

/// What a hypervisor is, as the server is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub name: &'static str,
    pub version: String,
    pub accelerator: Accelerator,
    pub tee: bool,
}

/// A machine that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub at: Timestamp,
    /// For the operator.
    pub reason: String,
    /// The guest powered itself off in good order.
    pub clean: bool,
}

/// What can be seen of a machine from outside; changes are pushed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    pub guest: GuestView,
    pub ended: Option<Ended>,
    /// Why the machine stands still, a word of [`VmReport::paused`](holdfast_model::node::VmReport::paused).
    pub paused: Option<&'static str>,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Started {
    /// Absent when there is no process.
    pub process: Option<Process>,
    pub at: Timestamp,
    pub view: watch::Receiver<View>,
}

/// What became of a machine while no node watched it.
#[derive(Debug)]
pub enum Adopted {
    Running(Started),
    /// Never started, or ended by us.
    Off,
    Died(Ended),
}

/// Where the keys of a guest come from: the server, asked anew at each boot.
#[async_trait]
pub trait KeySource: Send + Sync + 'static {
    async fn keys(&self, uuid: Uuid) -> Result<Keys, KeyError>;
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the server cannot be reached")]
    Unreachable,
    #[error("the server refuses the keys of this VM")]
    Refused,
}

/// Receives a log. Waits while the reader is slow.
#[async_trait]
pub trait LogSink: Send {
    /// `channel` is 1 for stdout and 2 for stderr. False when nobody listens any more.
    async fn write(&mut self, channel: u8, data: Bytes) -> bool;
}

#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    fn about(&self) -> About;

    fn records(&self) -> &Records;

    /// What there is in all; measured.
    async fn capacity(&self) -> Capacity;

    /// What is left, and whether new VMs are possible; measured.
    async fn health(&self) -> Health;

    async fn images(&self) -> Vec<ImageInfo>;

    /// Makes the disks of a VM, or makes them fit its spec.
    async fn prepare(&self, spec: &VmSpec) -> Result<(), Fault>;

    /// Starts the machine of a prepared VM. A machine of that VM that is there already is ended first.
    async fn start(&self, desired: &Arc<DesiredVm>) -> Result<Started, Fault>;

    /// Finds the machine that `runtime` speaks of, or what became of it. Without a spec (a tombstone) the guest gets
    /// no configuration any more.
    async fn adopt(&self, desired: &Arc<DesiredVm>, runtime: &Runtime) -> Adopted;

    /// Gives the guest of a machine that runs what it should run by now, and again until it has it: a guest that comes
    /// late, or that was silent, gets the newest. Does not wait for it; `view` shows what the guest made of it.
    async fn configure(&self, desired: &Arc<DesiredVm>);

    /// Asks the guest to power itself off within `grace_s` seconds. Does not wait for it.
    async fn shutdown(&self, uuid: Uuid, grace_s: u32);

    /// Forgets to ask a guest that has not heard it yet.
    async fn shutdown_withdraw(&self, uuid: Uuid);

    /// Ends the machine; when this returns it is gone. Nothing happens if it is gone already.
    async fn kill(&self, uuid: Uuid) -> Result<(), Fault>;

    /// Deletes everything of the VM, its record included.
    async fn remove(&self, uuid: Uuid) -> Result<(), Fault>;

    /// Writes a log to `sink`: what there is, and with `follow` what comes, until the VM is removed or `sink` closes.
    async fn logs(
        &self,
        uuid: Uuid,
        source: LogSource,
        options: LogOptions,
        sink: &mut dyn LogSink,
    ) -> Result<(), StreamError>;

    async fn containers(&self, uuid: Uuid) -> Result<Vec<Container>, StreamError>;

    /// The machine as its guest sees it.
    async fn stats(&self, uuid: Uuid) -> Result<Box<SystemStats>, StreamError>;
}

/// The spec of a VM that is not only waiting to be removed.
pub(crate) fn spec_of(desired: &DesiredVm) -> Result<&VmSpec, Fault> {
    desired.spec.as_ref().ok_or_else(|| Fault::lasting("bad_spec", "no spec"))
}

/// A [`StreamError`] with one of the protocol's words.
pub(crate) fn stream_error(code: &str, message: impl Into<String>) -> StreamError {
    StreamError { code: code.to_owned(), message: message.into() }
}
