//! What [`decide`](crate::decide) is given and what it returns.

use std::time::Duration;

use holdfast_model::error::Code;
use holdfast_model::guest::BootError;
use holdfast_model::node::{Outcome, Phase};
use holdfast_model::operation::Status;
use holdfast_model::vm::{RunState, VmStatus};
use holdfast_model::{Timestamp, operation};

use crate::revision::Change;

/// Which way an operation runs through its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Undo,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Undo => "undo",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Forward, Self::Undo].into_iter().find(|d| d.as_str() == text)
    }
}

/// Why an operation failed: a public sentence and, for administrators, the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    pub internal: Option<String>,
}

/// The part of an operation that the engine moves.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub status: Status,
    /// Index of the current step.
    pub step: usize,
    pub direction: Direction,
    /// The current step has begun: its write is done and it waits.
    pub entered: bool,
    pub step_started_at: Option<Timestamp>,
    pub deadline_at: Option<Timestamp>,
    /// Generation of desired state that this operation wrote last.
    pub generation: u64,
    /// Step names in the order they ran.
    pub sub_operations: Vec<String>,
    pub failure: Option<Failure>,
    /// Name of whoever asked for a cancel.
    pub cancelled_by: Option<String>,
    /// Status of the resource before the operation was accepted; where an undo leads back to.
    pub status_before: VmStatus,
    pub diff: operation::Diff,
}

/// Desired state as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub generation: u64,
    pub run_state: RunState,
    pub boot_epoch: u64,
}

/// The node's last word on the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub generation: u64,
    pub outcome: Outcome,
    pub phase: Phase,
    pub boot_epoch: u64,
    pub agent: bool,
    pub boot_progress: Option<String>,
    pub boot_error: Option<BootError>,
    /// The generation whose app the two speak of.
    pub app_revision: u64,
    pub will_restart: bool,
    pub exit_reason: Option<String>,
}

/// What is known of the resource and its node.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    pub status: VmStatus,
    pub desired: Option<Desired>,
    pub observed: Option<Observed>,
    /// The node has been heard of lately.
    pub node_online: bool,
    /// What the guest is given to stop its app, where the operation stops it.
    pub grace: Duration,
    /// What an update changes, from the revision that it replaces to its own; `None` when they are the same.
    pub change: Option<Change>,
}

/// An event to append, with the status that the resource has at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventOut {
    pub event_type: String,
    pub step: Option<String>,
    pub state: VmStatus,
}

/// Desired state to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredChange {
    pub generation: u64,
    pub run_state: RunState,
    pub boot_epoch: u64,
}

/// When to look at the operation again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When the node reports, and at this time at the latest.
    At(Timestamp),
    /// Never: it is over, or needs a person.
    Never,
}

/// Everything to write in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub record: Record,
    pub events: Vec<EventOut>,
    pub desired: Option<DesiredChange>,
    /// Put a revision of the VM in force: forward the operation's own, else the one that it replaced.
    pub revise: Option<Direction>,
    /// New status of the resource, if it changes.
    pub status: Option<VmStatus>,
    /// Give back capacity, ports and name, and mark the resource deleted.
    pub release: bool,
    pub next: Next,
}
