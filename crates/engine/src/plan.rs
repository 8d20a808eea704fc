//! What a plan is made of. Everything here is data, so that catalogues (events, permissions, API enums) can be read off it.
//!
//! The one rule: a plan that was released is never edited in a way that a running operation would notice. An operation
//! names the plan that it was accepted with by name and version and is carried out by exactly that one, whatever version
//! of the server goes on with it. To change a plan:
//!
//! 1. Copy its file to `ops/<kind>_<verb>_v<old version>.rs`: that is what running operations go on with.
//! 2. Raise `version` in `ops/<kind>_<verb>.rs` and make the change there: new operations are accepted with it.
//! 3. Name both in `ops::ALL`. `ops::find` tells them apart; tests hold names and versions to be unique.
//!
//! The old file goes when no database can hold an operation of that version that is not over. Until then a server that
//! lacks it (an older one after a downgrade, say) parks the operation with a reason, and one that has it goes on.

use std::time::Duration;

use holdfast_model::error::Code;
use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::{RunState, VmStatus};

use crate::record::Failure;

/// In the events of an operation that was set aside because the server has no such plan, and was taken up again: the
/// place that a step's name has in others.
pub const PARK: &str = "park";

/// An operation type: what it does, step by step.
#[derive(Debug)]
pub struct Plan {
    /// `create`, `power_on`, ...: the operation type of the Phala surface and the verb of the events.
    pub name: &'static str,
    /// Raised when the steps change in a way that a running operation would notice.
    pub version: u32,
    pub kind: Kind,
    pub verb: Verb,
    /// `instance`: the noun of the events.
    pub noun: &'static str,
    /// Statuses of the resource that the plan may begin in.
    pub from: &'static [VmStatus],
    /// Where the resource ends when all goes well.
    pub target: VmStatus,
    /// What the resource's status is from the accept on.
    pub accepted: VmStatus,
    pub steps: &'static [Step],
    /// Steps up to and including this index can be undone. `None`: nothing can, once the first step has begun.
    pub pivot: Option<usize>,
    /// Name of the permission a caller needs.
    pub permission: &'static str,
}

/// One named step.
#[derive(Debug)]
pub struct Step {
    pub name: &'static str,
    pub action: Action,
    /// How long the step may take, from its start.
    pub deadline: Deadline,
    pub undo: Option<Undo>,
    /// Status the resource gets when the step ends, if it changes.
    pub then: Option<VmStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Done by the transaction that accepted the operation; the step is there to carry the undo.
    Reserved,
    /// Recompute the diff, write desired state, raise its generation.
    Want(Want),
    /// Put the operation's revision of the VM in force, and tell the node if it has to know. The VM runs or not as
    /// before; one that runs starts anew if it must.
    Revise,
    /// Wait until the node reports it.
    Await(Until),
    /// Give back capacity, ports and name, and end the resource's life.
    Release,
}

/// A change to desired state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    pub run_state: RunState,
    /// Start anew even if the VM runs.
    pub new_epoch: bool,
}

/// What a step waits for, always about the operation's own generation or a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Disks exist.
    Prepared,
    /// QEMU runs in the wanted epoch.
    Started,
    /// The guest agent has answered.
    AgentUp,
    /// The app's containers were started.
    AppUp,
    Stopped,
    /// Nothing is left on the node.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// Write desired state again, in a new generation, and wait for the node.
    Want(Want, Until),
    /// Put the revision before in force again, in a new generation, and wait for the VM.
    Revise(Until),
    /// Give back what the accept transaction reserved.
    Release,
}

/// Which of the installation's deadlines applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// The step is only a write.
    None,
    Prepare,
    Start,
    Boot,
    Launch,
    Stop,
    Remove,
}

/// How long steps may take. An operator sets them in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    pub prepare: Duration,
    pub start: Duration,
    pub boot: Duration,
    pub launch: Duration,
    pub stop: Duration,
    pub remove: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            prepare: Duration::from_secs(120),
            start: Duration::from_secs(90),
            boot: Duration::from_secs(300),
            launch: Duration::from_secs(900),
            stop: Duration::from_secs(120),
            remove: Duration::from_secs(300),
        }
    }
}

impl Deadlines {
    /// `None` for a step that is only a write.
    pub fn of(&self, deadline: Deadline) -> Option<Duration> {
        match deadline {
            Deadline::None => None,
            Deadline::Prepare => Some(self.prepare),
            Deadline::Start => Some(self.start),
            Deadline::Boot => Some(self.boot),
            Deadline::Launch => Some(self.launch),
            Deadline::Stop => Some(self.stop),
            Deadline::Remove => Some(self.remove),
        }
    }
}

impl Plan {
    /// Why the plan cannot begin; `None` when it can. `what` names the resource in the sentence, `leaving` says that its
    /// node was told to remove it.
    pub fn refusal(&self, what: &str, status: VmStatus, leaving: bool) -> Option<Failure> {
        let message = if leaving && self.target != VmStatus::Deleted {
            format!("{what} is being removed; it can only be deleted.")
        } else if !self.from.contains(&status) {
            let from: Vec<_> = self.from.iter().map(|s| s.as_str()).collect();
            let name = self.name.replace('_', " ");
            format!("{what} is {}; {name} needs it to be {}.", status.as_str(), from.join(" or "))
        } else {
            return None;
        };
        Some(Failure { code: Code::WrongState, message, internal: None })
    }

    /// `instance.create.start`
    pub fn event(&self, end: &str) -> String {
        format!("{}.{}.{end}", self.noun, self.name)
    }

    /// `instance.create.prepare.start`
    pub fn step_event(&self, step: &str, end: &str) -> String {
        format!("{}.{}.{step}.{end}", self.noun, self.name)
    }

    /// Every event type this plan can write.
    pub fn event_types(&self) -> Vec<String> {
        let mut types: Vec<String> = ["start", "end", "error"].iter().map(|end| self.event(end)).collect();
        for step in self.steps {
            let undo = step.undo.map(|_| format!("undo_{}", step.name));
            for name in [Some(step.name.to_owned()), undo].into_iter().flatten() {
                types.extend(["start", "end", "error"].iter().map(|end| self.step_event(&name, end)));
            }
        }
        types.extend(["end", "error"].iter().map(|end| self.step_event(PARK, end)));
        types
    }

    /// True for an update: it gives the VM another revision and leaves it running or not, as it was.
    pub fn revises(&self) -> bool {
        self.steps.iter().any(|step| step.action == Action::Revise)
    }

    /// Where the resource ends when all goes well, seen from where it is.
    pub fn target_from(&self, before: VmStatus) -> VmStatus {
        let waits = self.steps.iter().any(|step| matches!(step.action, Action::Await(_)));
        if self.revises() && (before == VmStatus::Stopped || !waits) { before } else { self.target }
    }

    /// True while a cancel still undoes everything: before the pivot, or before anything has begun.
    pub fn can_cancel(&self, index: usize, entered: bool) -> bool {
        !self.past_pivot(index) || (index == 0 && !entered)
    }

    /// True once a failure can no longer be undone: step `index` has ended.
    pub fn past_pivot(&self, index: usize) -> bool {
        self.pivot.is_none_or(|pivot| index > pivot)
    }
}
