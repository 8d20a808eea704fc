//! The node process: its session with the server, its fleet and its reports, as `holdfast-node` has them.
//!
//! The one rule: what the process knows dies with it. Files and machines are the host's, and a new process goes on from
//! them alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_model::node::{DesiredVm, Phase, VmReport};
use holdfast_model::vm::{PortMapping, RunState, VmSpec};
use holdfast_node::reconcile::Action;
use holdfast_node::record::Record;
use uuid::Uuid;

use crate::broken::Broken;
use crate::net::{Answer, Batch, Call};
use crate::store::Row;
use crate::task::{Task, absent};
use crate::world::{Event, SECOND, World};

/// An action of the reconciler, on its way.
pub type Act = Action;

/// What the fleet keeps of a VM: the newest generation it was told, and a task until a tombstone was obeyed.
#[derive(Debug)]
pub struct Slot {
    pub news: Arc<DesiredVm>,
    pub task: Option<Task>,
}

#[derive(Debug, Default)]
pub struct Node {
    pub up: bool,
    /// Names one life of the process.
    pub session: u64,
    /// When this life began; the reconciler's ticks count from here.
    pub began: u64,
    pub slots: BTreeMap<usize, Slot>,
    /// Newest report of each VM, and those that the server may not have.
    pub entries: BTreeMap<usize, Arc<VmReport>>,
    pub dirty: BTreeSet<usize>,
    since: u64,
    /// Answers to calls before this one are of a connection that is gone.
    registered: Option<u64>,
    asked: Option<u64>,
    reporting: Option<(u64, Batch)>,
    seq: u64,
}

impl Node {
    /// The server has acknowledged the newest report of every VM.
    pub fn all_said(&self) -> bool {
        self.up && self.dirty.is_empty() && self.reporting.as_ref().is_none_or(|(_, batch)| batch.is_empty())
    }
}

/// The public id of a VM.
pub fn uuid_of(vm: usize) -> Uuid {
    Uuid::from_u128(vm as u128 + 1)
}

impl World {
    pub fn node_kill(&mut self, node: usize) {
        let old = std::mem::take(&mut self.nodes[node]);
        self.nodes[node].session = old.session;
    }

    pub fn node_start(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        let session = self.id();
        let found: Vec<(usize, Record)> = self.hosts[node].records.iter().map(|(vm, r)| (*vm, r.clone())).collect();
        let state = &mut self.nodes[node];
        (state.up, state.session, state.began) = (true, session, self.now);
        for (vm, record) in found {
            let news = record.desired.clone();
            let task = self.task_recover(node, vm, record);
            self.nodes[node].slots.insert(vm, Slot { news, task: Some(task) });
            self.after(0, Event::VmWake { node, session, vm });
        }
        self.node_register(node);
        self.after(5 * SECOND, Event::NodeBeat { node, session });
    }

    pub fn node_lives(&self, node: usize, session: u64) -> bool {
        self.nodes[node].up && self.nodes[node].session == session
    }

    fn node_call(&mut self, node: usize, patience: u64, call: impl FnOnce(u64, u64) -> Call) -> u64 {
        let (id, session) = (self.id(), self.nodes[node].session);
        self.send_call(node, &call(session, id));
        self.after(patience, Event::CallTimeout { node, session, call: id });
        id
    }

    fn node_register(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        (state.registered, state.asked) = (None, None);
        if let Some((_, batch)) = state.reporting.take() {
            state.dirty.extend(batch.keys());
        }
        let id = self.node_call(node, 10 * SECOND, |session, id| Call::Register { session, id });
        self.nodes[node].asked = Some(id);
    }

    fn node_asks(&mut self, node: usize) {
        let since = self.nodes[node].since;
        let id = self.node_call(node, 35 * SECOND, |session, id| Call::Desired { session, id, since });
        self.nodes[node].asked = Some(id);
    }

    /// Sends what the server may not know, if nothing is on its way.
    pub fn node_reports(&mut self, node: usize, even_nothing: bool) {
        let state = &mut self.nodes[node];
        if state.registered.is_none() || state.reporting.is_some() || (state.dirty.is_empty() && !even_nothing) {
            return;
        }
        let dirty = std::mem::take(&mut state.dirty);
        let batch = dirty.into_iter().filter_map(|vm| Some((vm, state.entries.get(&vm)?.clone())));
        let vms: Batch = Arc::new(batch.collect());
        state.seq += 1;
        let (seq, sent) = (state.seq, vms.clone());
        let id = self.node_call(node, 10 * SECOND, |session, id| Call::Report { session, id, seq, vms });
        self.nodes[node].reporting = Some((id, sent));
    }

    pub fn node_beat(&mut self, node: usize, session: u64) {
        if self.node_lives(node, session) {
            self.node_reports(node, true);
            self.after(5 * SECOND, Event::NodeBeat { node, session });
        }
    }

    pub fn call_timeout(&mut self, node: usize, session: u64, call: u64) {
        if !self.node_lives(node, session) {
            return;
        }
        let state = &mut self.nodes[node];
        if state.asked == Some(call) {
            if state.registered.is_some() { self.node_asks(node) } else { self.node_register(node) }
        } else if state.reporting.as_ref().is_some_and(|(id, _)| *id == call) {
            if let Some((_, batch)) = state.reporting.take() {
                state.dirty.extend(batch.keys());
            }
            self.node_reports(node, true);
        }
    }

    pub fn node_hears(&mut self, node: usize, session: u64, answer: Answer) {
        if !self.node_lives(node, session) {
            return;
        }
        let state = &mut self.nodes[node];
        match answer {
            Answer::Stale if state.registered.is_some() => self.node_register(node),
            Answer::Stale => {}
            Answer::Registered { id } if state.registered.is_none() && state.asked == Some(id) => {
                state.registered = Some(id);
                state.since = 0;
                state.dirty = state.entries.keys().copied().collect();
                self.node_asks(node);
                self.node_reports(node, true);
            }
            Answer::Registered { .. } => {}
            Answer::Page { id, .. } if state.registered.is_none_or(|since| id < since) => {}
            Answer::Page { id, since, revision, rows } => {
                // A late answer to a question that was given up, or a repeated one: still true then, maybe not now.
                let current = state.asked == Some(id);
                if current && since == 0 {
                    let named: BTreeSet<usize> = rows.iter().map(|(vm, _)| *vm).collect();
                    state.slots.retain(|vm, slot| named.contains(vm) || slot.task.is_some());
                }
                for (vm, row) in rows.iter() {
                    self.node_told(node, *vm, row);
                }
                if current {
                    self.nodes[node].since = revision;
                    self.node_asks(node);
                }
            }
            Answer::Ack { id } => {
                let Some((_, batch)) = state.reporting.take_if(|(sent, _)| *sent == id) else { return };
                for (vm, report) in batch.iter().filter(|(_, r)| r.phase == Phase::Absent) {
                    if state.entries.get(vm).is_some_and(|e| Arc::ptr_eq(e, report)) {
                        state.entries.remove(vm);
                    }
                }
                self.node_reports(node, false);
            }
        }
    }

    /// The fleet takes a generation, or knows better.
    fn node_told(&mut self, node: usize, vm: usize, row: &Row) {
        let session = self.nodes[node].session;
        let any = self.broken == Some(Broken::Generations);
        let news = Arc::new(self.desired_vm(vm, row));
        let state = &mut self.nodes[node];
        let Some(slot) = state.slots.get_mut(&vm) else {
            let task = Some(Task::new(news.clone()));
            state.slots.insert(vm, Slot { news, task });
            return self.after(0, Event::VmWake { node, session, vm });
        };
        let seen = slot.news.generation;
        let newer = news.generation > seen || (any && news.generation != seen);
        match (newer, slot.task.is_none()) {
            (true, true) => {
                *slot = Slot { task: Some(Task::new(news.clone())), news };
                self.after(0, Event::VmWake { node, session, vm });
            }
            (true, false) => {
                slot.news = news;
                self.after(0, Event::VmWake { node, session, vm });
            }
            (false, true) if news.generation == seen => {
                let report = absent(&news);
                self.node_publish(node, vm, report);
            }
            _ => {}
        }
    }

    pub fn node_publish(&mut self, node: usize, vm: usize, report: VmReport) {
        let state = &mut self.nodes[node];
        if state.entries.get(&vm).is_some_and(|e| **e == report) {
            return;
        }
        state.entries.insert(vm, Arc::new(report));
        state.dirty.insert(vm);
        self.node_reports(node, false);
    }

    fn desired_vm(&self, vm: usize, row: &Row) -> DesiredVm {
        let uuid = uuid_of(vm);
        let known = &self.store.vms[vm];
        let port = PortMapping {
            protocol: "tcp".to_owned(),
            host_address: "127.0.0.1".to_owned(),
            host_port: known.port,
            vm_port: 80,
        };
        let spec = VmSpec {
            uuid,
            name: String::new(),
            app_id: String::new(),
            instance_id: String::new(),
            image: String::new(),
            vcpu: 1,
            memory_mb: 1,
            disk_gb: 1,
            ports: vec![port],
            compose_hash: String::new(),
            app_compose: String::new(),
            encrypted_env: None,
            user_config: None,
            restart_policy: known.policy,
        };
        DesiredVm {
            uuid,
            generation: row.generation,
            run_state: row.run_state,
            stop: row.stop,
            boot_epoch: row.boot_epoch,
            spec: (row.run_state != RunState::Absent).then_some(spec),
        }
    }
}
