//! The state machine. See the crate's documentation for the drawing.

use std::time::Duration;

use holdfast_model::error::Code;
use holdfast_model::node::{DISK_FULL, GUEST_STAYS, Outcome, Phase};
use holdfast_model::operation::{FieldDiff, Status, Value};
use holdfast_model::vm::{RunState, VmStatus};
use holdfast_model::{Timestamp, guest};

use crate::observe::{Seen, status_seen};
use crate::plan::{Action, Deadline, Deadlines, Plan, Step, Undo, Until, Want};
use crate::record::{Decision, Desired, DesiredChange, Direction, EventOut, Failure, Next, Record, World};
use crate::revision::{Change, Effect};

/// Moves an operation as far as it can go now.
///
/// Terminal records come back unchanged. Calling it again with the same arguments gives the same decision; calling it
/// again after the decision was written gives one that writes nothing.
pub fn decide(plan: &Plan, record: &Record, world: &World, deadlines: &Deadlines, now: Timestamp) -> Decision {
    let mut run = Run {
        plan,
        deadlines,
        now,
        world: world.clone(),
        out: Decision {
            record: record.clone(),
            events: Vec::new(),
            desired: None,
            revise: None,
            status: None,
            release: false,
            next: Next::Never,
        },
    };
    if record.status == Status::Pending {
        run.out.record.status = Status::Running;
    }
    while run.out.record.status == Status::Running {
        let waiting = match run.out.record.direction {
            Direction::Forward => run.forward(),
            Direction::Undo => run.undo(),
        };
        if let Some(until) = waiting {
            run.out.next = Next::At(until);
            break;
        }
    }
    run.out
}

/// What a waiting step finds.
enum Found {
    Yes,
    NotYet,
    Failed(Failure),
}

struct Run<'a> {
    plan: &'a Plan,
    deadlines: &'a Deadlines,
    now: Timestamp,
    world: World,
    out: Decision,
}

impl Run<'_> {
    /// Does one thing in forward direction. Returns a time when there is nothing to do until then.
    fn forward(&mut self) -> Option<Timestamp> {
        let index = self.out.record.step;
        let Some(step) = self.plan.steps.get(index) else {
            self.finish(Status::Done, "end");
            return None;
        };
        if self.out.record.cancelled_by.is_some() && self.plan.can_cancel(index, self.out.record.entered) {
            let who = self.out.record.cancelled_by.clone().unwrap_or_default();
            let failure = Failure { code: Code::Cancelled, message: format!("cancelled by {who}"), internal: None };
            self.fail(step, failure);
            return None;
        }
        if !self.out.record.entered {
            if let Some(refusal) = self.refusal(step) {
                self.fail(step, refusal);
                return None;
            }
            if matches!(step.action, Action::Await(until) if self.is_needless(until)) {
                self.leave(index + 1);
                return None;
            }
            self.enter(step.name, self.allowed(step.deadline));
            match step.action {
                Action::Want(want) => self.want(want),
                Action::Revise => self.revise(),
                Action::Reserved | Action::Await(_) | Action::Release => {}
            }
            return None;
        }
        let found = match step.action {
            Action::Reserved | Action::Want(_) | Action::Revise => Found::Yes,
            Action::Await(until) => self.look(until),
            Action::Release => {
                self.out.release = true;
                Found::Yes
            }
        };
        match found {
            Found::Yes => {
                if let Some(status) = step.then {
                    self.set_status(status);
                }
                self.event(Some(step.name.to_owned()), "end");
                self.leave(index + 1);
                None
            }
            Found::Failed(failure) => {
                self.fail(step, failure);
                None
            }
            Found::NotYet => match self.out.record.deadline_at {
                Some(deadline) if deadline <= self.now => {
                    let failure = self.timeout(step);
                    self.fail(step, failure);
                    None
                }
                Some(deadline) => Some(deadline),
                None => Some(Timestamp(i64::MAX)),
            },
        }
    }

    /// Does one thing in undo direction; `step` is the index whose undo is due.
    fn undo(&mut self) -> Option<Timestamp> {
        let index = self.out.record.step;
        let undo = self.plan.steps.get(index).and_then(|step| Some((step.name, step.undo?)));
        let Some((name, undo)) = undo else {
            return self.undo_next(index);
        };
        let name = format!("undo_{name}");
        if !self.out.record.entered {
            let deadline = match undo {
                Undo::Revise(_) => Deadline::Launch,
                // A guest that has begun to stop does so first.
                Undo::Want(_, Until::Started) => Deadline::Stop,
                Undo::Want(..) | Undo::Release => Deadline::Remove,
            };
            self.enter(&name, self.allowed(deadline));
            match undo {
                Undo::Want(want, _) => self.want(want),
                Undo::Revise(_) => self.revise(),
                Undo::Release => self.out.release = true,
            }
            return None;
        }
        let found = match undo {
            Undo::Release => Found::Yes,
            Undo::Revise(until) if self.is_needless(until) => Found::Yes,
            Undo::Want(_, until) | Undo::Revise(until) => self.look(until),
        };
        match found {
            Found::Yes => {
                self.event(Some(name), "end");
                self.undo_next(index)
            }
            // The node did as it was told; that the app does not come up again is nothing that it refused.
            Found::Failed(failure) if matches!(failure.code, Code::BootFailed | Code::GuestExited) => {
                self.event(Some(name), "error");
                self.set_status(VmStatus::Error);
                self.finish(self.end_of_undo(), "error");
                None
            }
            Found::Failed(failure) => {
                self.event(Some(name), "error");
                let record = &mut self.out.record;
                let first = record.failure.take();
                record.failure = Some(Failure {
                    code: first.as_ref().map_or(failure.code, |f| f.code),
                    message: first.as_ref().map_or_else(|| failure.message.clone(), |f| f.message.clone()),
                    internal: Some(format!(
                        "undo refused: {}; first failure: {}",
                        failure.internal.as_deref().unwrap_or(&failure.message),
                        first.and_then(|f| f.internal).unwrap_or_default(),
                    )),
                });
                record.status = Status::Stuck;
                None
            }
            Found::NotYet => match self.out.record.deadline_at {
                // The node is gone. What it must do when it returns stands in desired state (a tombstone, or the old
                // state); until then the capacity stays held, and no later undo may give it back.
                Some(deadline) if deadline <= self.now => {
                    self.event(Some(name), "error");
                    self.set_status(VmStatus::Error);
                    self.finish(self.end_of_undo(), "error");
                    None
                }
                Some(deadline) => Some(deadline),
                None => Some(Timestamp(i64::MAX)),
            },
        }
    }

    /// The undo of `index` is over; on to the one before it, or to the end.
    fn undo_next(&mut self, index: usize) -> Option<Timestamp> {
        if let Some(before) = index.checked_sub(1) {
            self.leave(before);
            return None;
        }
        // Not `status_before` when an undo stopped what was broken or had exited: the node has reported that already,
        // and will not say it again.
        let stopped = self.world.desired.as_ref().is_some_and(|d| d.run_state == RunState::Stopped);
        let back_to = match self.out.release {
            true => VmStatus::Deleted,
            false if stopped => VmStatus::Stopped,
            false => self.settled(),
        };
        self.set_status(back_to);
        self.finish(self.end_of_undo(), "error");
        None
    }

    fn end_of_undo(&self) -> Status {
        if self.out.record.cancelled_by.is_some() { Status::Cancelled } else { Status::Failed }
    }

    /// A step failed: undo what ran, or leave the resource in `error`.
    fn fail(&mut self, step: &Step, failure: Failure) {
        let index = self.out.record.step;
        let begun = self.out.record.entered;
        if begun {
            self.event(Some(step.name.to_owned()), "error");
        }
        self.out.record.failure = Some(failure);
        // What the accept transaction reserved exists before its step begins.
        let last_done = if begun || step.action == Action::Reserved { Some(index) } else { index.checked_sub(1) };
        match last_done {
            Some(_) if self.plan.past_pivot(index) => {
                self.set_status(VmStatus::Error);
                self.finish(Status::Failed, "error");
            }
            Some(last) => {
                self.out.record.direction = Direction::Undo;
                self.leave(last);
            }
            // Nothing has begun, so nothing is undone.
            None => {
                self.set_status(self.out.record.status_before);
                self.finish(self.end_of_undo(), "error");
            }
        }
    }

    /// How long a step may take: what the guest is given to stop comes on top.
    fn allowed(&self, deadline: Deadline) -> Option<Duration> {
        let grace = if deadline == Deadline::Stop { self.world.grace } else { Duration::ZERO };
        self.deadlines.of(deadline).map(|allowed| allowed + grace)
    }

    /// Begins a step.
    fn enter(&mut self, name: &str, deadline: Option<Duration>) {
        let record = &mut self.out.record;
        record.entered = true;
        record.step_started_at = Some(self.now);
        record.deadline_at = deadline.map(|d| self.now.plus(d));
        record.sub_operations.push(name.to_owned());
        self.event(Some(name.to_owned()), "start");
    }

    /// Moves to step `index`, which has not begun.
    fn leave(&mut self, index: usize) {
        let record = &mut self.out.record;
        record.step = index;
        record.entered = false;
        record.step_started_at = None;
        record.deadline_at = None;
    }

    fn finish(&mut self, status: Status, end: &str) {
        self.leave(self.out.record.step);
        self.out.record.status = status;
        if status == Status::Done {
            self.set_status(if self.plan.revises() { self.settled() } else { self.plan.target });
        }
        if self.removed() && !self.out.release {
            // The node removed it while this operation held the VM, and will not say so again.
            self.out.release = true;
            self.set_status(VmStatus::Deleted);
        }
        self.event(None, end);
    }

    fn set_status(&mut self, status: VmStatus) {
        if self.world.status != status {
            self.world.status = status;
            self.out.status = Some(status);
        }
    }

    fn event(&mut self, step: Option<String>, end: &str) {
        let event_type = match &step {
            Some(step) => self.plan.step_event(step, end),
            None => self.plan.event(end),
        };
        self.out.events.push(EventOut { event_type, step, state: self.world.status });
    }

    /// The VM was to be removed, and it is.
    fn removed(&self) -> bool {
        let (Some(desired), Some(seen)) = (&self.world.desired, &self.world.observed) else { return false };
        let obeyed = seen.phase == Phase::Absent && seen.generation >= desired.generation;
        desired.run_state == RunState::Absent && obeyed
    }

    /// Why the step must not begin: nothing begins in a wrong status, and nothing revives what is to be removed.
    fn refusal(&self, step: &Step) -> Option<Failure> {
        let revives = match step.action {
            Action::Want(want) => self.revives(want.run_state),
            Action::Revise => self.revives(RunState::Running),
            Action::Reserved | Action::Await(_) | Action::Release => false,
        };
        let first = self.out.record.sub_operations.is_empty();
        (first || revives).then(|| self.plan.refusal("The VM", self.out.record.status_before, revives))?
    }

    /// True when the VM was to be removed and now should live again: its node may have removed its disks already.
    fn revives(&self, run_state: RunState) -> bool {
        let removed = self.world.desired.as_ref().is_some_and(|d| d.run_state == RunState::Absent);
        removed && run_state != RunState::Absent
    }

    /// Writes desired state in a new generation, and the diff it makes.
    fn want(&mut self, want: Want) {
        let old = self.world.desired.clone();
        let new = self.desire(want);
        if self.out.record.direction == Direction::Forward {
            self.rediff(old.as_ref(), &new);
        }
    }

    fn desire(&mut self, Want { run_state, new_epoch }: Want) -> Desired {
        let (generation, epoch) = self.world.desired.as_ref().map_or((0, 0), |d| (d.generation, d.boot_epoch));
        let (generation, boot_epoch) = (generation + 1, epoch + u64::from(new_epoch));
        let new = Desired { generation, run_state, boot_epoch };
        self.out.desired = Some(DesiredChange { generation, run_state, boot_epoch });
        self.out.record.generation = generation;
        self.world.desired = Some(new.clone());
        new
    }

    /// Puts a revision in force, and the diff of the operation. What the node has to know goes to it in a new generation;
    /// a VM that was not well before gets the revision by starting anew, because a guest that hangs would not take it.
    fn revise(&mut self) {
        let direction = self.out.record.direction;
        let Some(Change { effect, diff }) = self.world.change.clone() else {
            self.out.record.diff.clear();
            return;
        };
        if direction == Direction::Forward {
            self.out.record.diff = diff;
        }
        self.out.revise = Some(direction);
        let Some(run_state) = self.world.desired.as_ref().map(|d| d.run_state) else { return };
        if effect == Effect::Written {
            return;
        }
        let well = self.out.record.status_before == VmStatus::Running && self.is_there(Until::AgentUp);
        let new_epoch = run_state == RunState::Running && (effect == Effect::Restart || !well);
        self.desire(Want { run_state, new_epoch });
    }

    /// The node has said so, whatever generation it spoke of.
    fn is_there(&self, until: Until) -> bool {
        let (Some(desired), Some(seen)) = (&self.world.desired, &self.world.observed) else { return false };
        let running = seen.phase == Phase::Running && seen.boot_epoch >= desired.boot_epoch;
        match until {
            Until::Started => running,
            Until::AgentUp => running && seen.agent,
            _ => false,
        }
    }

    /// A step of an update that waits for what nobody wants, or for what is there already: a VM that did not have to
    /// start anew.
    fn is_needless(&self, until: Until) -> bool {
        let unchanged = self.world.change.as_ref().is_none_or(|change| change.effect == Effect::Written);
        let runs = self.world.desired.as_ref().is_some_and(|d| d.run_state == RunState::Running);
        let waited = self.out.record.sub_operations.len() > 1;
        self.plan.revises() && (unchanged || !runs || (!waited && self.is_there(until)))
    }

    /// The status of a VM that was left running or not, as it was: what was seen of it, or else what it was before.
    fn settled(&self) -> VmStatus {
        let before = self.out.record.status_before;
        let (Some(desired), Some(observed)) = (&self.world.desired, &self.world.observed) else { return before };
        let seen = Seen {
            generation: observed.generation,
            phase: observed.phase,
            failed: observed.boot_error.is_some(),
            progress: observed.boot_progress.as_deref(),
            app_revision: observed.app_revision,
        };
        status_seen(before, desired, &seen)
    }

    /// The `status` entry of the diff says what really changes, now that the claim is held.
    fn rediff(&mut self, old: Option<&Desired>, new: &Desired) {
        let word = |state: RunState| match state {
            RunState::Running => "running",
            RunState::Stopped => "stopped",
            RunState::Absent => "deleted",
        };
        let from = old.map(|d| word(d.run_state));
        let to = word(new.run_state);
        let diff = &mut self.out.record.diff;
        if from == Some(to) {
            diff.remove("status");
        } else {
            let entry = FieldDiff { from: from.map(Value::from), to: Some(Value::from(to)) };
            diff.insert("status".to_owned(), entry);
        }
    }

    /// Has the node reported it?
    fn look(&self, until: Until) -> Found {
        let Some(observed) = &self.world.observed else { return Found::NotYet };
        if observed.generation < self.out.record.generation {
            return Found::NotYet;
        }
        if let Outcome::Failed { code, message, retryable: false } = &observed.outcome {
            if code == GUEST_STAYS {
                return Found::Failed(Failure {
                    code: Code::GuestStays,
                    message: "the guest did not power off in its time, and may not be ended by force".to_owned(),
                    internal: Some(message.clone()),
                });
            }
            return Found::Failed(Failure {
                code: Code::NodeFailed,
                message: format!("the node could not do it: {code}"),
                internal: Some(message.clone()),
            });
        }
        let epoch = self.world.desired.as_ref().map_or(0, |d| d.boot_epoch);
        let in_epoch = observed.boot_epoch >= epoch;
        let booting = matches!(until, Until::Started | Until::AgentUp | Until::AppUp);
        // What the guest says counts once it speaks of the app that this operation wants, not of the one before.
        let of_this_app = observed.app_revision >= self.out.record.generation;
        // Without any configuration yet, it is the boot of this epoch that failed.
        // A VM whose boot failed has started.
        let error_counts = until != Until::Started && (of_this_app || observed.app_revision == 0);
        if booting && in_epoch {
            if let Some(guest::BootError { step, message }) = observed.boot_error.as_ref().filter(|_| error_counts) {
                return Found::Failed(Failure {
                    code: Code::BootFailed,
                    message: format!("boot failed at \"{step}\": {message}"),
                    internal: None,
                });
            }
            if observed.phase == Phase::Exited && !observed.will_restart {
                return Found::Failed(Failure {
                    code: Code::GuestExited,
                    message: "the VM ended while it was starting".to_owned(),
                    internal: observed.exit_reason.clone(),
                });
            }
        }
        let running = observed.phase == Phase::Running && in_epoch;
        let yes = match until {
            Until::Prepared => {
                matches!(observed.phase, Phase::Starting | Phase::Running | Phase::Stopped | Phase::Exited)
            }
            Until::Started => running,
            Until::AgentUp => running && observed.agent,
            Until::AppUp => {
                let done = observed.boot_progress.as_deref() == Some(guest::BootProgress::Done.as_str());
                running && of_this_app && done
            }
            Until::Stopped => observed.phase == Phase::Stopped,
            Until::Absent => observed.phase == Phase::Absent,
        };
        if yes { Found::Yes } else { Found::NotYet }
    }

    /// The step's deadline has passed: say what was missing.
    fn timeout(&self, step: &Step) -> Failure {
        let observed = self.world.observed.as_ref();
        let last = observed.map(|o| match &o.outcome {
            Outcome::Failed { code, message, .. } => format!("{code}: {message}"),
            _ => format!("phase {}, boot progress {:?}", o.phase.as_str(), o.boot_progress),
        });
        let (code, message) = match step.action {
            _ if !self.world.node_online => {
                (Code::NodeUnreachable, format!("step \"{}\" timed out: the node is not reachable", step.name))
            }
            _ if observed.is_some_and(|o| matches!(&o.outcome, Outcome::Failed { code, .. } if code == DISK_FULL)) => {
                (Code::NodeDiskFull, format!("step \"{}\" timed out: the node's disk is full", step.name))
            }
            Action::Await(Until::AgentUp) => {
                (Code::BootTimeout, format!("step \"{}\" timed out: the guest agent never answered", step.name))
            }
            Action::Await(Until::AppUp) => {
                let progress = observed.and_then(|o| o.boot_progress.as_deref()).unwrap_or("unknown");
                (Code::BootTimeout, format!("step \"{}\" timed out while the guest was at \"{progress}\"", step.name))
            }
            _ => (Code::StepTimeout, format!("step \"{}\" timed out", step.name)),
        };
        Failure { code, message, internal: last }
    }
}
