//! Workers and clients: who asks for operations, and who moves them with the real engine.
//!
//! The one rule: a worker holds nothing but its lease. It may be killed or put to sleep between any two of its
//! transactions, and one that wakes up too late writes under a stale token, which must change nothing.

use std::time::Duration;

use holdfast_engine::{Decision, Direction, Plan, decide, ops};
use holdfast_model::vm::{RestartPolicy, RunState, StopMode, VmStatus};

use crate::broken::Broken;
use crate::store::Claimed;
use crate::world::{Event, SECOND, World};

/// VMs that a node has room for.
pub const SLOTS: u16 = 5;
const MAX_VMS: usize = 14;
const MAX_OPS: usize = 80;
const GRACE: StopMode = StopMode::Graceful { grace_s: 10 };

impl World {
    pub fn client_acts(&mut self) {
        if !self.faults.on {
            return;
        }
        let wait = self.rng.range(SECOND / 10, 25 * SECOND);
        self.after(wait, Event::Client);
        if !self.server_up || self.store.ops.len() >= MAX_OPS {
            return;
        }
        let now = self.clock();
        let dice = self.rng.range(0, 100);
        let node = self.rng.index(self.nodes.len());
        let policy = if self.rng.chance(60) { RestartPolicy::OnFailure } else { RestartPolicy::Never };
        if self.store.vms.is_empty() || (dice < 25 && self.store.vms.len() < MAX_VMS) {
            self.store.create(&ops::VM_CREATE, node, SLOTS, policy, now);
        } else if dice < 40 {
            let op = self.rng.index(self.store.ops.len());
            let asked = self.store.cancel(op, now);
            self.note(|_| format!("  cancel of operation {op}: {asked}"));
        } else if dice < 45 {
            let op = self.rng.index(self.store.ops.len());
            self.store.abandon(op, now);
        } else if dice < 60 {
            // A client that does not wait for answers.
            let vm = self.rng.index(self.store.vms.len());
            for _ in 0..self.rng.range(2, 5) {
                self.client_asks(vm, true);
            }
        } else {
            let (vm, queue) = (self.rng.index(self.store.vms.len()), self.rng.chance(50));
            self.client_asks(vm, queue);
        }
        self.ring_work();
    }

    fn client_asks(&mut self, vm: usize, queue: bool) {
        let (plan, stop): (&'static Plan, _) = match self.rng.range(0, 10) {
            0..=2 => (&ops::VM_POWER_ON, StopMode::Hard),
            3 | 4 => (&ops::VM_POWER_OFF, GRACE),
            5 => (&ops::VM_SHUTDOWN, if self.rng.chance(50) { GRACE } else { StopMode::Asked { grace_s: 10 } }),
            6 | 7 => (&ops::VM_RESTART, if self.rng.chance(50) { GRACE } else { StopMode::Hard }),
            _ => (&ops::VM_DELETE, StopMode::Hard),
        };
        let now = self.clock();
        // Where operations may wait, nobody can ask for a shutdown.
        let queue = queue && plan.name != ops::VM_SHUTDOWN.name;
        let accepted = self.store.accept(plan, vm, stop, queue, now);
        self.note(|_| format!("  {} of vm {vm}: operation {accepted:?}", plan.name));
    }

    pub fn server_start(&mut self) {
        if self.server_up {
            return;
        }
        self.server_up = true;
        let now = self.clock();
        self.store.recover(Duration::from_secs(30), now);
        for worker in 0..self.workers.len() {
            self.worker_start(worker);
        }
    }

    pub fn worker_start(&mut self, worker: usize) {
        let state = &mut self.workers[worker];
        if state.up || !self.server_up {
            return;
        }
        state.up = true;
        state.life += 1;
        let life = state.life;
        self.after(0, Event::WorkerLook { worker, life });
    }

    pub fn worker_kill(&mut self, worker: usize) {
        self.workers[worker].up = false;
    }

    fn worker_lives(&self, worker: usize, life: u64) -> bool {
        self.workers[worker].up && self.workers[worker].life == life
    }

    /// Wakes one worker, unless the bell is not heard: then polling finds the work.
    pub fn ring_work(&mut self) {
        if self.rng.chance(self.faults.lost_bell) {
            return;
        }
        let worker = self.rng.index(self.workers.len());
        let (life, delay) = (self.workers[worker].life, self.rng.range(100, 3000));
        self.after(delay, Event::WorkerBell { worker, life });
    }

    /// The regular look for work; plans the next one.
    pub fn worker_look(&mut self, worker: usize, life: u64) {
        if !self.worker_lives(worker, life) {
            return;
        }
        self.worker_claims(worker, life);
        let now = self.clock();
        let due =
            self.store.next_due().map_or(2 * SECOND, |due| u64::try_from(due.since(now).as_micros()).unwrap_or(0));
        let wait = due.clamp(SECOND / 2, 2 * SECOND);
        self.after(wait, Event::WorkerLook { worker, life });
    }

    /// Claims what is due.
    pub fn worker_claims(&mut self, worker: usize, life: u64) {
        if !self.worker_lives(worker, life) {
            return;
        }
        let (limit, now) = (1 + self.rng.index(8), self.clock());
        for claimed in self.store.claim(limit, now) {
            self.check.claimed(claimed);
            let delay = self.worker_pause();
            self.after(delay, Event::WorkerAdvance { worker, life, claimed });
        }
    }

    /// How long until the worker does the next thing: seldom, longer than its lease.
    fn worker_pause(&mut self) -> u64 {
        if self.rng.chance(self.faults.worker_sleeps) {
            self.rng.range(5 * SECOND, 60 * SECOND)
        } else {
            self.rng.range(50, 5000)
        }
    }

    pub fn worker_advance(&mut self, worker: usize, life: u64, claimed: Claimed) {
        if !self.worker_lives(worker, life) {
            return;
        }
        let now = self.clock();
        let Some((record, world)) = self.store.load(claimed, now) else { return };
        let plan = self.store.ops[claimed.op].plan;
        let decision = self.disturb(decide(plan, &record, &world, &self.deadlines, now));
        if self.rng.chance(self.faults.worker_sleeps) {
            let delay = self.worker_pause();
            let versions = self.store.versions(claimed.op);
            let decision = Box::new(decision);
            return self.after(delay, Event::WorkerWrite { worker, life, claimed, decision, versions });
        }
        self.worker_write(claimed, &decision);
    }

    /// A transaction that slept before its write: with a current token it conflicts with whatever was written since, and
    /// runs again; with a stale one only the token stands between it and the record.
    pub fn worker_write_late(
        &mut self,
        worker: usize,
        life: u64,
        claimed: Claimed,
        decision: &Decision,
        versions: (u64, u64),
    ) {
        if !self.worker_lives(worker, life) {
            return;
        }
        let current = self.store.ops[claimed.op].token == claimed.token;
        if current && self.store.versions(claimed.op) != versions {
            return self.worker_advance(worker, life, claimed);
        }
        self.worker_write(claimed, decision);
    }

    fn worker_write(&mut self, claimed: Claimed, decision: &Decision) {
        let vm = &self.store.vms[self.store.ops[claimed.op].vm];
        let before = vm.desired.map(|row| row.run_state);
        let left = decision.status.unwrap_or(if decision.release { VmStatus::Deleted } else { vm.status });
        let now = self.clock();
        if !self.store.write(claimed, decision, now) {
            self.note(|_| format!("  lease of operation {} lost, nothing written", claimed.op));
            return;
        }
        let record = &decision.record;
        self.mark(&[claimed.op as u64, record.step as u64, record.generation, claimed.token]);
        self.note(|w| {
            let op = &w.store.ops[claimed.op];
            let events: Vec<_> = decision.events.iter().map(|e| e.event_type.as_str()).collect();
            format!("  operation {} (vm {}): {:?} {events:?}", claimed.op, op.vm, record.status)
        });
        if let Err(what) = self.check.wrote(&self.store, claimed, decision, (before, left)) {
            self.fail(what);
        }
        if decision.desired.is_some() && !self.rng.chance(self.faults.lost_bell) {
            self.ring_desired();
        }
    }

    /// Where a test breaks the engine on purpose.
    fn disturb(&self, mut decision: Decision) -> Decision {
        match self.broken {
            Some(Broken::Undo) if decision.record.direction == Direction::Undo => decision.desired = None,
            Some(Broken::Release) => {
                let gone = decision.desired.as_ref().is_some_and(|d| d.run_state == RunState::Absent);
                decision.release |= gone;
            }
            _ => {}
        }
        decision
    }
}
