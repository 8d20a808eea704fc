//! A world of one VM and one node, small enough to see through: decisions are written to it as the store would, and the
//! node moves one phase towards desired state at a time.

use holdfast_engine::revision::{Change, Effect};
use holdfast_engine::{
    Action, Deadlines, Decision, Desired, Direction, EventOut, Next, Observed, Plan, Record, World, decide,
};
use holdfast_model::Timestamp;
use holdfast_model::guest::BootError;
use holdfast_model::node::{GUEST_STAYS, Outcome, Phase};
use holdfast_model::operation::{FieldDiff, Status, Verb};
use holdfast_model::vm::{RunState, VmStatus};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The node says no, for good.
    Refuse,
    /// The node says nothing until the deadline has passed.
    Silence,
    /// The guest reports that its boot failed.
    BootError,
    /// The guest was asked to power off, and does not.
    Stays,
}

pub struct Bench {
    pub plan: &'static Plan,
    pub record: Record,
    pub world: World,
    pub events: Vec<EventOut>,
    pub released: bool,
    pub refuse_undo: bool,
    pub silent_undo: bool,
    /// The guest says that its boot failed, whatever it is given.
    pub broken_undo: bool,
    /// The revision that was put in force last.
    pub in_force: Option<Direction>,
    fault: Option<(&'static str, Fault)>,
    before: World,
    now: Timestamp,
    next: Next,
}

impl Bench {
    pub fn new(plan: &'static Plan) -> Self {
        let status_before = match plan.name {
            _ if plan.verb == Verb::Create => VmStatus::Creating,
            "power_on" => VmStatus::Stopped,
            _ => VmStatus::Running,
        };
        let (run_state, phase) = match status_before {
            VmStatus::Stopped => (RunState::Stopped, Phase::Stopped),
            _ => (RunState::Running, Phase::Running),
        };
        let exists = plan.verb != Verb::Create;
        let world = World {
            status: plan.accepted,
            desired: exists.then_some(Desired { generation: 7, run_state, boot_epoch: 2 }),
            observed: exists.then(|| observed(7, phase, 2)),
            node_online: true,
            grace: std::time::Duration::ZERO,
            change: plan.revises().then(|| change(plan)),
        };
        let record = Record {
            status: Status::Pending,
            step: 0,
            direction: Direction::Forward,
            entered: false,
            step_started_at: None,
            deadline_at: None,
            generation: 0,
            sub_operations: Vec::new(),
            failure: None,
            cancelled_by: None,
            status_before,
            diff: Default::default(),
        };
        Self {
            plan,
            record,
            before: world.clone(),
            world,
            events: Vec::new(),
            released: false,
            refuse_undo: false,
            silent_undo: false,
            broken_undo: false,
            in_force: None,
            fault: None,
            now: Timestamp(1_000_000),
            next: Next::At(Timestamp(0)),
        }
    }

    pub fn inject(&mut self, step: &'static str, fault: Fault) {
        self.fault = Some((step, fault));
    }

    pub fn over(&self) -> bool {
        self.next == Next::Never
    }

    pub fn decide(&self) -> Decision {
        decide(self.plan, &self.record, &self.world, &Deadlines::default(), self.now)
    }

    /// What the store does with a decision.
    pub fn write(&mut self, decision: Decision) {
        if let Some(change) = decision.desired {
            let old = self.world.desired.as_ref().map_or(0, |d| d.generation);
            assert!(change.generation > old, "generations only rise");
            self.world.desired = Some(Desired {
                generation: change.generation,
                run_state: change.run_state,
                boot_epoch: change.boot_epoch,
            });
        }
        if let Some(status) = decision.status {
            self.world.status = status;
        }
        assert!(decision.revise.is_none() || decision.revise != self.in_force, "put in force twice");
        self.in_force = decision.revise.or(self.in_force);
        assert!(!(self.released && decision.release), "released twice");
        self.released |= decision.release;
        self.events.extend(decision.events);
        self.record = decision.record;
        self.next = decision.next;
    }

    /// The node does one thing, or the fault that was injected happens; then time passes.
    pub fn node_moves(&mut self) {
        self.now = Timestamp(self.now.micros() + 1_000);
        let Some(desired) = self.world.desired.clone() else { return };
        let undoing = self.record.direction == Direction::Undo;
        let refusal = |generation| Observed {
            outcome: Outcome::Failed { code: "broken".into(), message: "/host/path".into(), retryable: false },
            ..observed(generation, Phase::Exited, desired.boot_epoch)
        };
        if undoing && (self.refuse_undo || self.silent_undo) {
            if self.refuse_undo {
                self.world.observed = Some(refusal(desired.generation));
            } else {
                self.pass_deadline();
            }
            return;
        }
        let step = self.plan.steps.get(self.record.step).map(|s| s.name);
        match self.fault.filter(|(at, _)| !undoing && Some(*at) == step && self.record.entered) {
            Some((_, Fault::Refuse)) => self.world.observed = Some(refusal(desired.generation)),
            Some((_, Fault::Silence)) => self.pass_deadline(),
            Some((_, Fault::Stays)) => {
                let (code, message) = (GUEST_STAYS.to_owned(), "asked in vain".to_owned());
                let seen = self.world.observed.get_or_insert_with(|| observed(0, Phase::Running, 0));
                seen.outcome = Outcome::Failed { code, message, retryable: false };
                (seen.generation, seen.phase) = (desired.generation, Phase::Stopping);
            }
            Some((_, Fault::BootError)) => {
                let error = BootError { step: "pre-launch".into(), message: "exit status 1".into() };
                let seen = self.world.observed.get_or_insert_with(|| observed(0, Phase::Running, 0));
                seen.boot_error = Some(error);
                (seen.generation, seen.app_revision) = (desired.generation, desired.generation);
            }
            None => {
                let mut seen = advance(self.world.observed.take(), &desired);
                if undoing && self.broken_undo && seen.boot_progress.as_deref() == Some("done") {
                    seen.boot_error = Some(BootError { step: "pre-launch".into(), message: "exit status 2".into() });
                }
                self.world.observed = Some(seen);
            }
        }
    }

    fn pass_deadline(&mut self) {
        if let Some(deadline) = self.record.deadline_at {
            self.now = Timestamp(deadline.micros() + 1);
        }
    }

    pub fn round(&mut self) {
        let decision = self.decide();
        self.write(decision);
        self.node_moves();
    }

    pub fn run(&mut self) {
        for _ in 0..100 {
            if self.over() {
                return;
            }
            self.round();
        }
        panic!("{}: it never ends; at step {} {:?}", self.plan.name, self.record.step, self.record.direction);
    }

    /// Steps (not undos) that ended in an error, in order.
    pub fn failed_steps(&self) -> Vec<String> {
        let errors = self.events.iter().filter(|e| e.event_type.ends_with(".error"));
        errors.filter_map(|e| e.step.clone()).filter(|s| !s.starts_with("undo_")).collect()
    }

    /// After an undo: the world is as it was before, in newer generations.
    pub fn assert_nothing_left(&self) {
        let run_state = |world: &World| world.desired.as_ref().map(|d| d.run_state);
        if self.plan.verb == Verb::Create {
            assert!(self.released, "the reservation was given back");
            assert_eq!(self.world.status, VmStatus::Deleted);
            assert!(matches!(run_state(&self.world), None | Some(RunState::Absent)));
            let seen = self.world.observed.as_ref().map(|o| o.phase);
            assert!(matches!(seen, None | Some(Phase::Absent)), "the node has nothing left: {seen:?}");
        } else {
            assert!(!self.released);
            // One that had stopped is on its way back.
            let restarted = self.plan.name == "shutdown" && self.world.status == VmStatus::Starting;
            assert!(restarted || self.world.status == self.record.status_before, "{:?}", self.world.status);
            assert_eq!(run_state(&self.world), run_state(&self.before));
            assert_ne!(self.in_force, Some(Direction::Forward), "the revision before is in force");
        }
    }
}

/// The largest change that a plan can make: its steps are all needed.
fn change(plan: &Plan) -> Change {
    let waits = plan.steps.iter().any(|step| matches!(step.action, Action::Await(_)));
    let entry = FieldDiff { from: Some(1.into()), to: Some(2.into()) };
    Change { effect: if waits { Effect::Restart } else { Effect::Written }, diff: [("field".to_owned(), entry)].into() }
}

fn observed(generation: u64, phase: Phase, boot_epoch: u64) -> Observed {
    Observed {
        generation,
        outcome: Outcome::Applied,
        phase,
        boot_epoch,
        agent: phase == Phase::Running,
        boot_progress: (phase == Phase::Running).then(|| "done".to_owned()),
        boot_error: None,
        app_revision: if phase == Phase::Running { generation } else { 0 },
        will_restart: false,
        exit_reason: None,
    }
}

/// One move of a healthy node.
fn advance(seen: Option<Observed>, desired: &Desired) -> Observed {
    let old = seen.unwrap_or_else(|| Observed { agent: false, ..observed(0, Phase::Absent, 0) });
    let mut new = Observed { outcome: Outcome::Progress, generation: desired.generation, ..old.clone() };
    match (desired.run_state, old.phase) {
        (RunState::Absent, _) => new = observed(desired.generation, Phase::Absent, old.boot_epoch),
        (RunState::Stopped, Phase::Running) => new.phase = Phase::Stopping,
        (RunState::Stopped, _) => new = observed(desired.generation, Phase::Stopped, old.boot_epoch),
        (RunState::Running, Phase::Running) if old.boot_epoch == desired.boot_epoch => {
            new.outcome = Outcome::Applied;
            if old.agent {
                (new.boot_progress, new.boot_error) = (Some("done".to_owned()), None);
                new.app_revision = desired.generation;
            }
            new.agent = true;
        }
        (RunState::Running, Phase::Running) => new.phase = Phase::Stopping,
        // It was only asked, and has not heard it.
        (RunState::Running, Phase::Stopping) if old.boot_epoch == desired.boot_epoch => new.phase = Phase::Running,
        (RunState::Running, Phase::Absent) => new.phase = Phase::Preparing,
        (RunState::Running, Phase::Starting) => {
            new.phase = Phase::Running;
            new.boot_epoch = desired.boot_epoch;
            new.agent = false;
            (new.boot_progress, new.boot_error) = (Some("booting".to_owned()), None);
            new.app_revision = 0;
        }
        (RunState::Running, _) => new.phase = Phase::Starting,
    }
    new
}
