//! The invariants, checked after every event against a memory of its own.
//!
//! The one rule: nothing here is taken from the code under test. What was issued, written and done is remembered apart,
//! and what is there now is compared with it.

use std::collections::BTreeMap;

use holdfast_engine::{Decision, Direction, Undo};
use holdfast_model::node::{Outcome, Phase};
use holdfast_model::operation::{Status, Value};
use holdfast_model::vm::{RunState, VmStatus};
use holdfast_node::reconcile::{self, Machine};

use crate::store::{Claimed, Store};
use crate::world::World;

#[derive(Debug, Default)]
pub struct Checker {
    /// Newest fencing token that was handed out, by operation.
    tokens: BTreeMap<usize, u64>,
    /// Version of an operation when it became terminal.
    ended: BTreeMap<usize, (Status, u64)>,
    /// Highest generation that a VM ever had.
    generations: BTreeMap<usize, u64>,
    /// Run state of the last write of desired state, by VM.
    last_write: BTreeMap<usize, RunState>,
    /// Highest generation that a node has acted on, by node and VM.
    acted: BTreeMap<(usize, usize), u64>,
}

fn word(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Stopped => "stopped",
        RunState::Absent => "deleted",
    }
}

impl Checker {
    pub fn claimed(&mut self, claimed: Claimed) {
        self.tokens.insert(claimed.op, claimed.token);
    }

    /// A node begins to act on a generation.
    pub fn acts(&mut self, node: usize, vm: usize, generation: u64) -> Result<(), String> {
        let highest = self.acted.entry((node, vm)).or_default();
        if generation < *highest {
            return Err(format!("generations: node {node} acts on {generation} of vm {vm} after {highest}"));
        }
        *highest = generation;
        Ok(())
    }

    /// A write of a worker took effect. `before` is the run state that was wanted until then, `left` the status that the
    /// VM has after it.
    pub fn wrote(
        &mut self,
        store: &Store,
        claimed: Claimed,
        decision: &Decision,
        (before, left): (Option<RunState>, VmStatus),
    ) -> Result<(), String> {
        let issued = self.tokens.get(&claimed.op).copied().unwrap_or_default();
        if claimed.token < issued || store.ops[claimed.op].token != claimed.token {
            return Err(format!("fencing: a write with token {} took effect after {issued}", claimed.token));
        }
        let (op, record) = (&store.ops[claimed.op], &decision.record);
        let plan = op.plan.name;
        if record.status.is_terminal() {
            turn_came(store, op.vm, left)?;
        }
        let Some(change) = &decision.desired else {
            return undone(store, claimed.op);
        };
        let last = self.last_write.insert(op.vm, change.run_state);
        if last != before {
            return Err(format!("diffs: vm {} wanted {before:?} although {last:?} was written last", op.vm));
        }
        if record.direction == Direction::Forward {
            let (from, to) = (last.map(word), word(change.run_state));
            let entry = record.diff.get("status");
            let expected = (from != Some(to)).then(|| (from.map(Value::from), Some(Value::from(to))));
            if entry.map(|e| (e.from.clone(), e.to.clone())) != expected {
                return Err(format!("diffs: {plan} of vm {} says {entry:?} but it went {from:?} -> {to}", op.vm));
            }
        }
        undone(store, claimed.op)
    }
}

/// Whoever begins after an operation on the same VM goes on from where that one left it.
fn turn_came(store: &Store, vm: usize, left: VmStatus) -> Result<(), String> {
    let mut open = store.ops.iter().enumerate().filter(|(_, o)| o.vm == vm && !o.record.status.is_terminal());
    let Some((index, next)) = open.next() else { return Ok(()) };
    if left == VmStatus::Deleted {
        return Err(format!("queue: operation {index} waits for vm {vm}, which is gone"));
    }
    if next.wake_at.is_some() && next.record.status_before != left {
        return Err(format!(
            "queue: operation {index} begins at {:?}, but vm {vm} is {left:?}",
            next.record.status_before
        ));
    }
    Ok(())
}

/// An operation that has undone what it wrote leaves desired state behind, as its undo says.
/// Its record names no generation that desired state never had.
fn undone(store: &Store, op: usize) -> Result<(), String> {
    let op = &store.ops[op];
    let vm = &store.vms[op.vm];
    let Some(desired) = vm.desired else { return Ok(()) };
    if op.record.generation > desired.generation {
        return Err(format!("diffs: vm {} never had generation {}", op.vm, op.record.generation));
    }
    let undone = op.record.direction == Direction::Undo && op.record.status.is_terminal();
    let back = op.plan.steps.iter().find_map(|step| match step.undo {
        Some(Undo::Want(want, _)) => Some(want.run_state),
        _ => None,
    });
    if undone && op.record.generation > 0 && Some(desired.run_state) != back {
        return Err(format!("diffs: {} of vm {} was undone, yet it is wanted {:?}", op.plan.name, op.vm, desired));
    }
    Ok(())
}

/// What holds between any two events.
pub fn after(world: &mut World) -> Option<String> {
    let (store, check) = (&world.store, &mut world.check);
    let mut running: BTreeMap<usize, usize> = BTreeMap::new();
    let mut waiting: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, op) in store.ops.iter().enumerate() {
        let status = op.record.status;
        match check.ended.get(&index) {
            Some(ended) if *ended != (status, op.version) => {
                return Some(format!("terminal: operation {index} was {:?} and changed", ended.0));
            }
            Some(_) => continue,
            None if status.is_terminal() => {
                check.ended.insert(index, (status, op.version));
            }
            None => {}
        }
        if status == Status::Pending {
            waiting.entry(op.vm).or_insert(index);
            continue;
        }
        // Operations stand in the order of their accepts. Only a cancel ends one before its turn.
        let cancelled = status == Status::Cancelled && op.record.sub_operations.is_empty();
        if let Some(earlier) = waiting.get(&op.vm).filter(|_| !cancelled) {
            return Some(format!("order: operation {index} went ahead of {earlier} on vm {}", op.vm));
        }
        if status.is_terminal() {
            continue;
        }
        if let Some(other) = running.insert(op.vm, index) {
            return Some(format!("claims: operations {other} and {index} run on vm {} at a time", op.vm));
        }
    }
    for (index, vm) in store.vms.iter().enumerate() {
        let Some(desired) = vm.desired else { continue };
        let highest = check.generations.entry(index).or_default();
        if desired.generation < *highest || vm.deleted {
            return Some(format!("generations: vm {index} went from {highest} to {}", desired.generation));
        }
        *highest = desired.generation;
    }
    let mut machines: BTreeMap<usize, usize> = BTreeMap::new();
    for (node, host) in world.hosts.iter().enumerate() {
        for vm in host.holds() {
            if store.vms[vm].deleted {
                return Some(format!("leftovers: node {node} has something of vm {vm}, which was released"));
            }
            if store.vms[vm].node != node {
                return Some(format!("leftovers: node {node} has something of vm {vm}, which is placed elsewhere"));
            }
        }
        for vm in host.machines.keys() {
            if let Some(other) = machines.insert(*vm, node) {
                return Some(format!("machines: vm {vm} runs on nodes {other} and {node}"));
            }
        }
    }
    None
}

/// Why a healthy world is not at rest yet, or not as it should be.
pub fn unsettled(world: &World) -> Option<String> {
    let store = &world.store;
    for (index, op) in store.ops.iter().enumerate() {
        let reason = op.record.failure.as_ref().is_some_and(|f| f.internal.is_some());
        match op.record.status {
            Status::Pending | Status::Running => return Some(format!("operation {index} does not finish: {op:?}")),
            Status::Stuck if !reason => return Some(format!("operation {index} is stuck without a reason")),
            _ => {}
        }
    }
    for (node, state) in world.nodes.iter().enumerate() {
        if !state.all_said() {
            return Some(format!("node {node} has not said all"));
        }
    }
    store.vms.iter().enumerate().find_map(|(index, vm)| vm_unsettled(world, index, vm))
}

fn vm_unsettled(world: &World, index: usize, vm: &crate::store::Vm) -> Option<String> {
    let Some(desired) = vm.desired else {
        let held = !vm.deleted && !world.store.claimed(index);
        return held.then(|| format!("vm {index} is held, but nothing wants it"));
    };
    let host = &world.hosts[vm.node];
    let Some(task) = world.nodes[vm.node].slots.get(&index).and_then(|slot| slot.task.as_ref()) else {
        let gone = desired.run_state == RunState::Absent && !host.holds().any(|held| held == index);
        if gone && world.store.claimed(index) {
            // Stuck, and a person has not looked yet: what is held stays held.
            return None;
        }
        return Some(format!("node {} does not know vm {index}: {vm:?}", vm.node));
    };
    let local = &task.local;
    if local.generation() != desired.generation || task.busy {
        return Some(format!("vm {index}: wanted {}, node has {}", desired.generation, local.generation()));
    }
    let outcome = reconcile::outcome(local);
    if matches!(local.machine, Machine::On { .. }) != host.machines.contains_key(&index) {
        return Some(format!("vm {index}: the node is wrong about its machine"));
    }
    let Some(seen) = &vm.observed else { return Some(format!("vm {index} was never reported")) };
    if (seen.generation, &seen.outcome, seen.phase) != (local.generation(), &outcome, reconcile::phase(local)) {
        return Some(format!("vm {index}: the server saw {seen:?}, it is {local:?}"));
    }
    match outcome {
        // The node refused for good, and says so.
        Outcome::Failed { retryable: false, .. } => None,
        Outcome::Applied => {
            let fits = match desired.run_state {
                RunState::Running => matches!(seen.phase, Phase::Running | Phase::Exited),
                RunState::Stopped => seen.phase == Phase::Stopped,
                RunState::Absent => false,
            };
            let wanted = holdfast_engine::Desired {
                generation: desired.generation,
                run_state: desired.run_state,
                boot_epoch: desired.boot_epoch,
            };
            let status = holdfast_engine::status_of(vm.status, &wanted, seen);
            if !fits {
                Some(format!("vm {index}: wanted {desired:?}, the node is content with {seen:?}"))
            } else if status != vm.status && !world.store.claimed(index) {
                Some(format!("status: vm {index} is called {:?}, what was seen of it amounts to {status:?}", vm.status))
            } else {
                None
            }
        }
        _ => Some(format!("vm {index}: the node is not done: {outcome:?}")),
    }
}
