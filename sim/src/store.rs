//! The store in memory: what `holdfast-store` does with an accept, a claim, a decision and a report, row by row.
//!
//! The one rule: each function is one transaction of the real store and keeps its conditions: a claim raises the fencing
//! token, a write must match it, a report wakes whoever waits, a release takes the tombstone with it, and whatever ends
//! an operation lets the next one begin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::{Decision, Desired, Direction, Failure, Next, Observed, Plan, Record, World, status_of};
use holdfast_model::Timestamp;
use holdfast_model::error::Code;
use holdfast_model::node::{Phase, VmReport};
use holdfast_model::operation::Status;
use holdfast_model::vm::{RestartPolicy, RunState, StopMode, VmStatus};

use crate::broken::Broken;

/// A row of desired state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub generation: u64,
    pub revision: u64,
    pub run_state: RunState,
    pub stop: StopMode,
    pub boot_epoch: u64,
}

#[derive(Debug)]
pub struct Vm {
    pub node: usize,
    pub status: VmStatus,
    pub deleted: bool,
    /// Taken while the VM is not deleted.
    pub port: u16,
    pub policy: RestartPolicy,
    pub desired: Option<Row>,
    pub observed: Option<Arc<VmReport>>,
    /// Raised by every write; stands for the database's conflict check.
    pub version: u64,
}

#[derive(Debug)]
pub struct Op {
    pub plan: &'static Plan,
    pub vm: usize,
    pub record: Record,
    pub stop: StopMode,
    pub wake_at: Option<Timestamp>,
    pub token: u64,
    pub lease_until: Option<Timestamp>,
    pub held: bool,
    /// It was accepted, and its turn has not come.
    pub waiting: bool,
    /// It was so once.
    pub waited: bool,
    pub version: u64,
}

/// The server's row of a node.
#[derive(Debug)]
pub struct Home {
    pub revision: u64,
    pub session: u64,
    pub report_seq: u64,
    pub last_seen: Timestamp,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Of a session that is not the node's current one.
    Stale,
    Taken {
        woken: bool,
    },
}

/// A lease on an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    pub op: usize,
    pub token: u64,
}

#[derive(Debug)]
pub struct Store {
    pub vms: Vec<Vm>,
    pub ops: Vec<Op>,
    pub homes: Vec<Home>,
    pub broken: Option<Broken>,
}

pub const LEASE: Duration = Duration::from_secs(10);
const PATIENCE: i64 = 15_000_000;
/// Operations that may wait for a VM.
const QUEUE_LIMIT: usize = 4;

impl Store {
    pub fn new(nodes: usize, broken: Option<Broken>) -> Self {
        let home = |_| Home { revision: 1, session: 0, report_seq: 0, last_seen: Timestamp(0) };
        Self { vms: Vec::new(), ops: Vec::new(), homes: (0..nodes).map(home).collect(), broken }
    }

    /// The VM and its create, with a port of its own on `node`; `None` when the node is full.
    pub fn create(
        &mut self,
        plan: &'static Plan,
        node: usize,
        slots: u16,
        policy: RestartPolicy,
        now: Timestamp,
    ) -> Option<usize> {
        let used: Vec<u16> = self.vms.iter().filter(|v| v.node == node && !v.deleted).map(|v| v.port).collect();
        let port = (0..slots).find(|p| !used.contains(p))?;
        self.vms.push(Vm {
            node,
            status: plan.accepted,
            deleted: false,
            port,
            policy,
            desired: None,
            observed: None,
            version: 0,
        });
        let vm = self.vms.len() - 1;
        self.accept(plan, vm, StopMode::Hard, false, now);
        Some(vm)
    }

    /// True while a mutation holds the VM.
    pub fn claimed(&self, vm: usize) -> bool {
        self.ops.iter().any(|o| o.vm == vm && o.held)
    }

    /// Operations that wait for the VM, first come first.
    fn line(&self, vm: usize) -> impl DoubleEndedIterator<Item = usize> {
        self.ops.iter().enumerate().filter(move |(_, o)| o.vm == vm && o.waiting).map(|(index, _)| index)
    }

    /// Why a plan cannot begin on a VM as it stands.
    fn refusal(&self, plan: &Plan, vm: usize) -> Option<Failure> {
        let row = &self.vms[vm];
        if row.deleted {
            return Some(Failure { code: Code::CvmNotFound, message: "it is gone".to_owned(), internal: None });
        }
        let leaving = row.desired.is_some_and(|wanted| wanted.run_state == RunState::Absent);
        plan.refusal("it", row.status, leaving)
    }

    /// Accepts an operation, if the plan can begin and nothing holds the VM. One that may `queue` waits for its turn.
    pub fn accept(
        &mut self,
        plan: &'static Plan,
        vm: usize,
        stop: StopMode,
        queue: bool,
        now: Timestamp,
    ) -> Option<usize> {
        let waits = self.claimed(vm) && self.broken != Some(Broken::Claim);
        if waits && !(queue && self.line(vm).count() < QUEUE_LIMIT) {
            return None;
        }
        if !self.claimed(vm) && self.refusal(plan, vm).is_some() {
            return None;
        }
        let row = &mut self.vms[vm];
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
            status_before: row.status,
            diff: Default::default(),
        };
        if !waits {
            row.status = plan.accepted;
            row.version += 1;
        }
        self.ops.push(Op {
            plan,
            vm,
            record,
            stop,
            wake_at: (!waits).then_some(now),
            token: 0,
            lease_until: None,
            held: !waits,
            waiting: waits,
            waited: waits,
            version: 0,
        });
        Some(self.ops.len() - 1)
    }

    /// Those that wait for the VM begin, or fail as their accept would now, until one of them holds it.
    fn turns(&mut self, vm: usize, now: Timestamp) {
        while !self.claimed(vm) && self.broken != Some(Broken::Promotion) {
            let next =
                if self.broken == Some(Broken::Order) { self.line(vm).next_back() } else { self.line(vm).next() };
            let Some(next) = next else { return };
            let refusal = self.refusal(self.ops[next].plan, vm);
            let op = &mut self.ops[next];
            op.waiting = false;
            op.version += 1;
            if let Some(failure) = refusal {
                (op.record.status, op.record.failure) = (Status::Failed, Some(failure));
                continue;
            }
            let row = &mut self.vms[vm];
            if self.broken != Some(Broken::Turn) {
                op.record.status_before = row.status;
            }
            (op.held, op.wake_at) = (true, Some(now));
            row.status = op.plan.accepted;
            row.version += 1;
        }
    }

    /// A person gives a stuck operation up.
    pub fn abandon(&mut self, op: usize, now: Timestamp) -> bool {
        let row = &mut self.ops[op];
        if row.record.status != Status::Stuck {
            return false;
        }
        row.record.status = Status::Failed;
        (row.held, row.wake_at) = (false, None);
        row.token += 1;
        row.version += 1;
        let vm = row.vm;
        let row = &mut self.vms[vm];
        row.status = VmStatus::Error;
        row.version += 1;
        let absent = row.desired.filter(|wanted| wanted.run_state == RunState::Absent);
        let gone =
            |seen: &Arc<VmReport>, wanted: Row| seen.phase == Phase::Absent && seen.generation >= wanted.generation;
        if absent.is_some_and(|wanted| row.observed.as_ref().is_some_and(|seen| gone(seen, wanted))) {
            self.release(vm);
        }
        self.turns(vm, now);
        true
    }

    /// Stuck operations that others wait for.
    pub fn in_the_way(&self) -> Vec<usize> {
        let stuck = self.ops.iter().enumerate().filter(|(_, o)| o.record.status == Status::Stuck);
        stuck.filter(|(_, o)| self.line(o.vm).next().is_some()).map(|(index, _)| index).collect()
    }

    /// Asks for a cancel; refused once it could not be undone. One that waits is over at once.
    pub fn cancel(&mut self, op: usize, now: Timestamp) -> bool {
        let op = &mut self.ops[op];
        let record = &mut op.record;
        let open = matches!(record.status, Status::Pending | Status::Running);
        let untouched = record.step == 0 && !record.entered;
        if !open || record.direction == Direction::Undo || (op.plan.past_pivot(record.step) && !untouched) {
            return false;
        }
        record.cancelled_by = Some("somebody".to_owned());
        op.version += 1;
        if op.waiting {
            op.waiting = false;
            op.record.status = Status::Cancelled;
        } else {
            op.wake_at = Some(now);
        }
        true
    }

    pub fn claim(&mut self, limit: usize, now: Timestamp) -> Vec<Claimed> {
        let mut due: Vec<(Timestamp, usize)> = Vec::new();
        for (index, op) in self.ops.iter().enumerate() {
            match op.wake_at {
                Some(at) if at <= now && op.lease_until.is_none_or(|until| until < now) => due.push((at, index)),
                _ => {}
            }
        }
        due.sort_unstable();
        due.truncate(limit);
        let take = |(_, index): (Timestamp, usize)| {
            let op = &mut self.ops[index];
            op.token += 1;
            op.lease_until = Some(now.plus(LEASE));
            Claimed { op: index, token: op.token }
        };
        due.into_iter().map(take).collect()
    }

    pub fn next_due(&self) -> Option<Timestamp> {
        self.ops.iter().filter_map(|o| o.wake_at).min()
    }

    /// A start of all there is: leases are void, and no step times out for the time the server was away.
    pub fn recover(&mut self, grace: Duration, now: Timestamp) {
        for op in self.ops.iter_mut().filter(|o| o.wake_at.is_some()) {
            let floor = now.plus(grace);
            op.record.deadline_at = op.record.deadline_at.map(|d| d.max(floor));
            op.lease_until = None;
            op.token += 1;
            op.wake_at = Some(now);
            op.version += 1;
        }
    }

    /// What the engine needs; `None` when the lease was lost.
    pub fn load(&self, claimed: Claimed, now: Timestamp) -> Option<(Record, World)> {
        let op = &self.ops[claimed.op];
        if op.token != claimed.token && self.broken != Some(Broken::Fencing) {
            return None;
        }
        let vm = &self.vms[op.vm];
        let observed = vm.observed.as_ref().map(|r| Observed {
            generation: r.generation,
            outcome: r.outcome.clone(),
            phase: r.phase,
            boot_epoch: r.boot_epoch,
            agent: r.agent,
            boot_progress: r.boot_progress.clone(),
            boot_error: r.boot_error.clone(),
            app_revision: r.app_revision,
            will_restart: r.will_restart,
            exit_reason: r.exit_reason.clone(),
        });
        let node_online = self.homes[vm.node].last_seen.micros() >= now.micros() - PATIENCE;
        let world = World {
            status: vm.status,
            desired: vm.desired.map(|d| desired(&d)),
            observed,
            node_online,
            grace: Duration::ZERO,
            change: None,
        };
        Some((op.record.clone(), world))
    }

    /// What a transaction that began by reading this operation would conflict over.
    pub fn versions(&self, op: usize) -> (u64, u64) {
        (self.ops[op].version, self.vms[self.ops[op].vm].version)
    }

    /// Writes a decision and gives the lease back. False when the lease was lost; then nothing was written.
    pub fn write(&mut self, claimed: Claimed, decision: &Decision, now: Timestamp) -> bool {
        let op = &mut self.ops[claimed.op];
        if op.token != claimed.token && self.broken != Some(Broken::Fencing) {
            return false;
        }
        let cancelled_by = op.record.cancelled_by.take();
        op.record = Record { cancelled_by, ..decision.record.clone() };
        op.lease_until = None;
        op.version += 1;
        op.wake_at = match decision.next {
            Next::At(_) if self.broken == Some(Broken::Wake) => Some(Timestamp(i64::MAX)),
            Next::At(at) => Some(at),
            Next::Never => None,
        };
        op.held &= !decision.record.status.is_terminal();
        let (vm, stop) = (op.vm, op.stop);
        let row = &mut self.vms[vm];
        row.version += 1;
        if let Some(change) = &decision.desired {
            let home = &mut self.homes[row.node];
            home.revision += 1;
            row.desired = Some(Row {
                generation: change.generation,
                revision: home.revision,
                run_state: change.run_state,
                stop,
                boot_epoch: change.boot_epoch,
            });
        }
        row.status = decision.status.unwrap_or(row.status);
        if decision.release {
            self.release(vm);
        }
        if decision.record.status.is_terminal() {
            self.turns(vm, now);
        }
        true
    }

    fn release(&mut self, vm: usize) {
        let row = &mut self.vms[vm];
        (row.desired, row.observed) = (None, None);
        (row.status, row.deleted) = (VmStatus::Deleted, true);
        row.version += 1;
    }

    /// A new session of a node.
    pub fn register(&mut self, node: usize, session: u64, now: Timestamp) {
        let home = &mut self.homes[node];
        let report_seq = if home.session == session { home.report_seq } else { 0 };
        (home.session, home.report_seq, home.last_seen) = (session, report_seq, now);
    }

    /// Everything of the node that is newer than `since`.
    pub fn page(&self, node: usize, since: u64) -> (u64, Vec<(usize, Row)>) {
        let rows = self.vms.iter().enumerate().filter(|(_, v)| v.node == node);
        let mut rows: Vec<(usize, Row)> = rows.filter_map(|(i, v)| Some((i, v.desired?))).collect();
        rows.retain(|(_, row)| row.revision > since);
        rows.sort_unstable_by_key(|(_, row)| row.revision);
        (self.homes[node].revision, rows)
    }

    /// Takes in a report, unless a newer one of the session is known.
    pub fn report(
        &mut self,
        node: usize,
        session: u64,
        seq: u64,
        vms: &BTreeMap<usize, Arc<VmReport>>,
        now: Timestamp,
    ) -> Heard {
        let home = &mut self.homes[node];
        if home.session != session {
            return Heard::Stale;
        }
        if seq <= home.report_seq {
            return Heard::Taken { woken: false };
        }
        (home.report_seq, home.last_seen) = (seq, now);
        let mut woken = false;
        for (vm, report) in vms {
            woken |= self.report_one(*vm, report, now);
        }
        Heard::Taken { woken }
    }

    fn report_one(&mut self, vm: usize, report: &Arc<VmReport>, now: Timestamp) -> bool {
        let row = &mut self.vms[vm];
        if row.deleted {
            return false;
        }
        row.observed = Some(report.clone());
        row.version += 1;
        let mut held = self.ops.iter_mut().filter(|o| o.vm == vm && o.held).peekable();
        if held.peek().is_some() {
            for op in held.filter(|o| o.wake_at.is_some()) {
                if self.broken != Some(Broken::Wake) {
                    op.wake_at = Some(now);
                    op.version += 1;
                }
            }
            return true;
        }
        let Some(wanted) = row.desired else { return false };
        if wanted.run_state == RunState::Absent {
            if report.phase == Phase::Absent && report.generation >= wanted.generation {
                self.release(vm);
            }
            return false;
        }
        row.status = status_of(row.status, &desired(&wanted), report);
        false
    }
}

fn desired(row: &Row) -> Desired {
    Desired { generation: row.generation, run_state: row.run_state, boot_epoch: row.boot_epoch }
}
