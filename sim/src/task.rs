//! The task of one VM on a node, around the real reconciler, as `holdfast-node`'s own: announce, act, confirm.
//!
//! The one rule: each act is three events (announced on disk, done by the hypervisor, written down), so the process can
//! die between any two of them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::node::{DesiredVm, Outcome, Phase, VmReport};
use holdfast_model::vm::{RestartPolicy, RunState, StopMode};
use holdfast_node::reconcile::{self, Action, Died, Fault, Local, Machine, Tick};
use holdfast_node::record::{Life, Record, Runtime};

use crate::broken::Broken;
use crate::faults::Misfortune;
use crate::host::Life as GuestLife;
use crate::node::{Act, uuid_of};
use crate::world::{Event, World};

const STOP_AFTER_ADOPTION: Duration = Duration::from_secs(30);
const POWER_OFF_TIME: Duration = Duration::from_secs(15);
const ASKED_TIME: Duration = Duration::from_secs(25);
const BACKOFF: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Task {
    pub record: Record,
    pub local: Local,
    unsaved: bool,
    /// The machine that is watched.
    watched: Option<u64>,
    pub busy: bool,
}

impl Task {
    pub fn new(desired: Arc<DesiredVm>) -> Self {
        let unsaved = desired.run_state != RunState::Absent;
        let local = Local { desired: Some(desired.clone()), ..Local::default() };
        let record = Record { desired, runtime: Runtime::default() };
        Self { record, local, unsaved, watched: None, busy: false }
    }

    fn fail(&mut self, now: Tick, fault: Misfortune, random: f64) {
        let generation = self.local.generation();
        let before = self.local.fault.as_ref().filter(|f| f.generation == generation);
        let attempts = before.map_or(0, |f| f.attempts) + 1;
        self.local.fault = Some(Fault {
            generation,
            code: fault.code.to_owned(),
            message: String::new(),
            retryable: fault.retryable,
            attempts,
            retry_at: Fault::retry_at(now, attempts, random),
        });
    }

    fn report(&self, vm: usize) -> VmReport {
        let guest = &self.record.runtime.guest;
        VmReport {
            uuid: uuid_of(vm),
            generation: self.local.generation(),
            outcome: reconcile::outcome(&self.local),
            phase: reconcile::phase(&self.local),
            boot_epoch: self.local.epoch,
            restarts: self.local.restarts,
            agent: guest.agent,
            boot_progress: guest.boot_progress.clone(),
            boot_error: guest.boot_error.clone(),
            app_revision: guest.app_revision,
            shutdown_progress: None,
            started_at: None,
            exited_at: None,
            exit_reason: None,
            will_restart: reconcile::will_restart(&self.local),
            paused: None,
        }
    }
}

/// The report about a tombstone that was obeyed before.
pub fn absent(desired: &DesiredVm) -> VmReport {
    VmReport {
        uuid: desired.uuid,
        generation: desired.generation,
        outcome: Outcome::Applied,
        phase: Phase::Absent,
        boot_epoch: desired.boot_epoch,
        restarts: 0,
        agent: false,
        boot_progress: None,
        boot_error: None,
        app_revision: 0,
        shutdown_progress: None,
        started_at: None,
        exited_at: None,
        exit_reason: None,
        will_restart: false,
        paused: None,
    }
}

impl World {
    fn tick(&self, node: usize) -> Tick {
        Duration::from_micros(self.now - self.nodes[node].began)
    }

    /// Runs `change` on the task, which is there.
    fn task<T>(&mut self, node: usize, vm: usize, change: impl FnOnce(&mut Task) -> T) -> Option<T> {
        self.nodes[node].slots.get_mut(&vm)?.task.as_mut().map(change)
    }

    /// Writes the runtime to the host's disk; a full disk keeps what was there. False when it was not written.
    fn save_runtime(&mut self, node: usize, vm: usize) -> bool {
        if self.now < self.hosts[node].full_until {
            return false;
        }
        let Some(runtime) = self.task(node, vm, |t| t.record.runtime.clone()) else { return false };
        if let Some(record) = self.hosts[node].records.get_mut(&vm) {
            record.runtime = runtime;
        }
        true
    }

    /// A new process finds out what became of the machine that the record speaks of.
    pub fn task_recover(&mut self, node: usize, vm: usize, record: Record) -> Task {
        let host = &self.hosts[node];
        let mut task = Task::new(record.desired.clone());
        let runtime = &record.runtime;
        (task.local.epoch, task.local.restarts, task.unsaved) = (runtime.epoch, runtime.restarts, false);
        let same_boot = runtime.host_boot_id == host.boot_id();
        let policy = record.desired.spec.as_ref().map_or(RestartPolicy::Never, |s| s.restart_policy);
        let now = Tick::ZERO;
        match runtime.life {
            Life::Off => {}
            Life::Died if !same_boot && policy == RestartPolicy::OnFailure && !runtime.clean => task.local.restarts = 0,
            Life::Died => task.local.died = Some(Died { at: now, clean: runtime.clean }),
            Life::Starting | Life::On | Life::Stopping if !same_boot => task.local.restarts = 0,
            Life::Starting | Life::On | Life::Stopping => match host.machines.get(&vm) {
                Some(machine) => {
                    let stopping = runtime.life == Life::Stopping;
                    let desired = &record.desired;
                    let asks = desired.run_state == RunState::Stopped && matches!(desired.stop, StopMode::Asked { .. });
                    let kill_at = (stopping && !asks).then_some(now + STOP_AFTER_ADOPTION);
                    task.local.machine = Machine::On { kill_at };
                    task.watched = Some(machine.id);
                    // What is to be stopped, or started anew, gets nothing any more.
                    if desired.run_state == RunState::Running && runtime.epoch >= desired.boot_epoch {
                        task.local.configured = desired.generation;
                    }
                }
                None if runtime.life == Life::On => {
                    let clean = host.ended.get(&vm).copied().unwrap_or(false);
                    task.local.died = Some(Died { at: now, clean });
                }
                None => {}
            },
        }
        let configured = task.local.configured;
        task.record = record;
        if task.watched.is_some() && task.record.runtime.life == Life::Starting {
            task.record.runtime.life = Life::On;
        }
        if let Some(died) = task.local.died {
            (task.record.runtime.life, task.record.runtime.clean) = (Life::Died, died.clean);
            task.record.runtime.guest.agent = false;
        }
        if let Some(stored) = self.hosts[node].records.get_mut(&vm) {
            stored.runtime = task.record.runtime.clone();
        }
        self.guest_is_given(node, vm, configured);
        task
    }

    /// The task looks at everything and does what is due, until there is nothing to do or something is under way.
    pub fn vm_wake(&mut self, node: usize, session: u64, vm: usize) {
        if !self.node_lives(node, session) {
            return;
        }
        let any = self.broken == Some(Broken::Generations);
        let now = self.tick(node);
        let full = self.now < self.hosts[node].full_until;
        loop {
            let Some(slot) = self.nodes[node].slots.get_mut(&vm) else { return };
            let news = slot.news.clone();
            let Some(task) = slot.task.as_mut().filter(|t| !t.busy) else { return };
            if task.local.accepts(&news) || (any && news.generation != task.local.generation()) {
                task.record.desired = news.clone();
                task.local.desired = Some(news);
                task.unsaved = true;
            }
            if task.unsaved {
                if full {
                    task.fail(now, Misfortune { code: "disk_full", retryable: true }, self.rng.fraction());
                } else {
                    (task.unsaved, task.local.fault) = (false, None);
                    let record = task.record.clone();
                    let stored = self.hosts[node].records.entry(vm).or_insert_with(|| record.clone());
                    stored.desired = record.desired;
                }
            }
            let Some((report, gone, action)) = self.task(node, vm, |task| {
                task.local.leaving = task.record.runtime.guest.shutdown_progress.is_some();
                let action = if task.unsaved {
                    Action::Wait(task.local.fault.as_ref().map_or(now, |f| f.retry_at))
                } else {
                    reconcile::decide(&task.local, now, BACKOFF)
                };
                (task.report(vm), task.local.gone, action)
            }) else {
                return;
            };
            self.node_publish(node, vm, report);
            if gone {
                if let Some(slot) = self.nodes[node].slots.get_mut(&vm) {
                    slot.task = None;
                }
                // What came meanwhile finds the task closed.
                return;
            }
            match action {
                Action::Rest | Action::Wait(_) => {
                    if self.vm_looks(node, vm) {
                        continue;
                    }
                    if let Action::Wait(until) = action {
                        let at =
                            self.nodes[node].began + u64::try_from(until.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
                        self.at(at, Event::VmWake { node, session, vm });
                    }
                    return;
                }
                action => return self.vm_begins(node, session, vm, action),
            }
        }
    }

    /// Takes in what the machine shows. True when that was news.
    fn vm_looks(&mut self, node: usize, vm: usize) -> bool {
        let now = self.tick(node);
        let host = &self.hosts[node];
        let machine = host.machines.get(&vm).map(|m| (m.id, m.guest.clone()));
        let clean = host.ended.get(&vm).copied().unwrap_or(false);
        let news = self.task(node, vm, |task| {
            let watched = task.watched?;
            let runtime = &mut task.record.runtime;
            match machine {
                Some((id, guest)) if id == watched => {
                    let changed = guest != runtime.guest;
                    runtime.guest = guest;
                    changed.then_some(())
                }
                _ => {
                    let stopped = runtime.life == Life::Stopping;
                    (task.watched, task.local.machine) = (None, Machine::Off);
                    runtime.life = if stopped { Life::Off } else { Life::Died };
                    (runtime.clean, runtime.guest.agent) = (clean || stopped, false);
                    if !stopped {
                        task.local.died = Some(Died { at: now, clean });
                    }
                    Some(())
                }
            }
        });
        let news = news.flatten().is_some();
        if news {
            self.save_runtime(node, vm);
        }
        news
    }

    /// Announces an act, on disk where it must be found again.
    fn vm_begins(&mut self, node: usize, session: u64, vm: usize, act: Act) {
        self.note(|_| format!("  node {node} vm {vm}: {act:?}"));
        let now = self.tick(node);
        let boot_id = self.hosts[node].boot_id();
        let Some((generation, report)) = self.task(node, vm, |task| {
            task.busy = true;
            let (local, runtime) = (&mut task.local, &mut task.record.runtime);
            match act {
                Action::Start { epoch, restarts } => {
                    (local.epoch, local.restarts, local.died) = (epoch, restarts, None);
                    *runtime = Runtime { life: Life::Starting, epoch, restarts, ..Runtime::default() };
                    runtime.host_boot_id = boot_id;
                }
                Action::Shutdown { grace_s } => {
                    runtime.life = Life::Stopping;
                    let asks = matches!(task.record.desired.stop, StopMode::Asked { .. });
                    let rest = if asks { ASKED_TIME } else { POWER_OFF_TIME };
                    let kill_at = now + Duration::from_secs(grace_s.into()) + rest;
                    local.machine = Machine::On { kill_at: Some(kill_at) };
                }
                Action::Kill => runtime.life = Life::Stopping,
                _ => {}
            }
            (task.local.generation(), task.report(vm))
        }) else {
            return;
        };
        if let Err(what) = self.check.acts(node, vm, generation) {
            self.fail(what);
        }
        if matches!(act, Action::Start { .. } | Action::Shutdown { .. } | Action::Kill) {
            let saved = self.save_runtime(node, vm);
            if !saved && matches!(act, Action::Start { .. }) {
                let result = Err(Misfortune { code: "disk_full", retryable: true });
                return self.after(100, Event::VmDone { node, session, vm, act, result });
            }
            self.node_publish(node, vm, report);
        }
        let delay = self.rng.range(100, 2_000_000);
        self.after(delay, Event::VmEffect { node, session, vm, act });
    }

    /// The hypervisor does it, or fails.
    pub fn vm_effect(&mut self, node: usize, session: u64, vm: usize, act: Act) {
        if !self.node_lives(node, session) {
            return;
        }
        let writes = matches!(act, Action::Prepare | Action::Start { .. });
        let result = match act {
            Action::Shutdown { .. } | Action::Configure | Action::GiveUp | Action::Withdraw => Ok(()),
            _ => self.misfortune(node, writes),
        };
        let port = self.task(node, vm, |t| t.record.desired.spec.as_ref().map(|s| s.ports[0].host_port)).flatten();
        let generation = self.task(node, vm, |t| t.local.generation()).unwrap_or_default();
        if result.is_ok() {
            match act {
                Action::Prepare => {
                    self.hosts[node].disks.insert(vm);
                }
                Action::Start { .. } => self.machine_starts(node, vm, port.unwrap_or_default(), generation),
                Action::Configure => self.guest_is_given(node, vm, generation),
                Action::Shutdown { .. } => self.guest_is_asked(node, vm),
                Action::Kill => {
                    self.hosts[node].machines.remove(&vm);
                }
                Action::Remove => self.hosts[node].remove(vm),
                // What a hypervisor has not asked yet, it forgets.
                Action::GiveUp | Action::Withdraw | Action::Rest | Action::Wait(_) => {}
            }
        }
        let delay = self.rng.range(50, 200_000);
        self.after(delay, Event::VmDone { node, session, vm, act, result });
    }

    /// The process learns of it and writes it down.
    pub fn vm_done(&mut self, node: usize, session: u64, vm: usize, act: Act, result: Result<(), Misfortune>) {
        if !self.node_lives(node, session) {
            return;
        }
        let now = self.tick(node);
        let machine = self.hosts[node].machines.get(&vm).map(|m| m.id);
        let random = self.rng.fraction();
        self.task(node, vm, |task| {
            task.busy = false;
            let (local, runtime) = (&mut task.local, &mut task.record.runtime);
            match (&act, result) {
                (Action::Start { .. }, Err(_)) => runtime.life = Life::Off,
                (Action::Start { .. }, Ok(())) => {
                    runtime.life = Life::On;
                    local.machine = Machine::On { kill_at: None };
                    local.configured = local.generation();
                    // A machine that has died already shows in the first look.
                    task.watched = Some(machine.unwrap_or(u64::MAX));
                }
                (Action::Configure, Ok(())) => local.configured = local.generation(),
                (Action::Prepare, Ok(())) => local.prepared = Some(local.generation()),
                (Action::Kill, Ok(())) => {
                    (local.machine, task.watched) = (Machine::Off, None);
                    (runtime.life, runtime.clean, runtime.guest.agent) = (Life::Off, true, false);
                }
                (Action::Remove, Ok(())) => local.gone = true,
                (Action::Withdraw, Ok(())) => {
                    runtime.life = Life::On;
                    local.machine = Machine::On { kill_at: None };
                }
                _ => {}
            }
            match result {
                Ok(()) if act == Action::GiveUp => task.local.fault = Some(reconcile::given_up(&task.local, now)),
                Ok(()) => task.local.fault = None,
                Err(fault) => task.fail(now, fault, random),
            }
        });
        if matches!(act, Action::Start { .. } | Action::Kill) {
            self.save_runtime(node, vm);
        }
        self.vm_wake(node, session, vm);
    }

    /// Tells the task, if there is one to tell.
    pub fn vm_notice(&mut self, node: usize, vm: usize) {
        let session = self.nodes[node].session;
        self.after(0, Event::VmWake { node, session, vm });
    }

    fn guest_is_asked(&mut self, node: usize, vm: usize) {
        let Some(machine) = self.hosts[node].machines.get(&vm).map(|m| m.id) else { return };
        // A guest that hangs is killed when its grace is over, or given up.
        if !self.rng.chance(self.faults.bad_guest) {
            if let Some(found) = self.hosts[node].machines.get_mut(&vm) {
                found.guest.shutdown_progress = Some("stopping app".to_owned());
            }
            self.vm_notice(node, vm);
            let delay = self.rng.range(100_000, 12_000_000);
            self.after(delay, Event::Guest { node, vm, machine, life: GuestLife::PowersOff });
        }
    }
}
