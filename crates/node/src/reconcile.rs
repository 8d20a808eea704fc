//! What to do next with one VM: a pure function from what is wanted and what is there to one action.
//!
//! The one rule: [`decide`] looks at whole states only, never at how they came about. Whoever calls it carries out the
//! action, writes down what is there now, and asks again; so a crash between any two steps only repeats a question.
//!
//! ```text
//!                 Prepare               Start(epoch)
//!    (nothing) ----------->  disks  ------------------->  machine on
//!        ^                    ^  |  <-------------------      |
//!        |                    |  |   Shutdown .. Kill         | dies by itself
//!        |     Remove         |  |                            v
//!        +--------------------+--+ <----------------------  exited
//!              (tombstone)            Start(same epoch): policy, at most 5 times, exponential backoff
//!                                     Start(higher epoch): always
//! ```
//!
//! | wanted | machine on | machine off |
//! |---|---|---|
//! | running in epoch E | in E or newer: configure once per generation, rest; asked in vain: withdraw; older, or already being stopped: stop | never ran in E, or stopped by us, or lost with its host: prepare, start; died in E: policy |
//! | stopped | stop | prepare once per generation, rest |
//! | absent | stop | remove |

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::backoff::backoff;
use holdfast_model::node::{DesiredVm, GUEST_STAYS, Outcome, Phase};
use holdfast_model::vm::{RestartPolicy, RunState, StopMode};

/// A point in time: how long the node process has been running.
pub type Tick = Duration;

/// First and longest wait between two tries of a step that fails, before they are shortened at random.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Everything is as wanted, or nothing can be done about it. Only news changes that.
    Rest,
    /// Nothing before this moment, unless there is news.
    Wait(Tick),
    /// Make the disks, or make them fit the spec. Repeatable.
    Prepare,
    Start {
        epoch: u64,
        /// Automatic restarts in `epoch`, this one included.
        restarts: u32,
    },
    /// Tell the running guest what it should run by now.
    Configure,
    /// Ask the guest to power itself off.
    Shutdown {
        grace_s: u32,
    },
    /// Say that the guest was asked in vain.
    GiveUp,
    /// It was asked in vain and is to run on: ask no more.
    Withdraw,
    Kill,
    /// Delete everything. Repeatable.
    Remove,
}

/// The process that runs the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Off,
    On {
        /// Set once the guest was asked to power off: then it is killed, or given up where it is only asked.
        kill_at: Option<Tick>,
    },
}

/// The machine ended although nobody here ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Died {
    pub at: Tick,
    /// The guest powered itself off in good order: no failure, so no automatic restart.
    pub clean: bool,
}

/// A step that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The generation it was tried for. A newer one starts afresh.
    pub generation: u64,
    pub code: String,
    /// For the operator.
    pub message: String,
    pub retryable: bool,
    /// Tries so far.
    pub attempts: u32,
    /// Not tried again before this.
    pub retry_at: Tick,
}

impl Fault {
    /// When to try again after `attempts` failures, the last of them at `now`. `random` is from 0 to 1: the caller's, so
    /// that this stays pure.
    pub fn retry_at(now: Tick, attempts: u32, random: f64) -> Tick {
        now + backoff(RETRY_FIRST, RETRY_MAX, attempts, random)
    }
}

/// What is there, of one VM.
#[derive(Debug, Clone)]
pub struct Local {
    pub desired: Option<Arc<DesiredVm>>,
    /// Generation that the disks were last prepared for in this life of the node.
    pub prepared: Option<u64>,
    pub machine: Machine,
    /// Generation that the machine's guest is given, by its start, its adoption or since; 0 when it is given none.
    pub configured: u64,
    /// Epoch that the machine was last started in; 0 before the first start.
    pub epoch: u64,
    /// Automatic restarts in `epoch`.
    pub restarts: u32,
    pub died: Option<Died>,
    /// The guest said that it is shutting down.
    pub leaving: bool,
    pub fault: Option<Fault>,
    /// A tombstone that was obeyed: nothing is left.
    pub gone: bool,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            desired: None,
            prepared: None,
            machine: Machine::Off,
            configured: 0,
            epoch: 0,
            restarts: 0,
            died: None,
            leaving: false,
            fault: None,
            gone: false,
        }
    }
}

impl Local {
    pub fn generation(&self) -> u64 {
        self.desired.as_ref().map_or(0, |d| d.generation)
    }

    /// True when `news` replaces what is wanted now. A lower or equal generation never does.
    pub fn accepts(&self, news: &DesiredVm) -> bool {
        news.generation > self.generation() && (news.spec.is_some() || news.run_state == RunState::Absent)
    }

    fn prepared_now(&self) -> bool {
        self.prepared == Some(self.generation())
    }

    fn current_fault(&self) -> Option<&Fault> {
        // That a guest stays is said of it for as long as it does.
        let stays = self.machine != Machine::Off;
        self.fault.as_ref().filter(|f| f.generation == self.generation() && (stays || f.code != GUEST_STAYS))
    }
}

/// Wait before automatic restart number `restarts + 1`.
pub fn restart_backoff(base: Duration, restarts: u32) -> Duration {
    base.saturating_mul(1 << restarts.min(16))
}

/// The next action. `backoff` is the wait before the first automatic restart.
pub fn decide(local: &Local, now: Tick, backoff: Duration) -> Action {
    let Some(desired) = &local.desired else { return Action::Rest };
    if local.gone {
        return Action::Rest;
    }
    match local.current_fault() {
        Some(fault) if !fault.retryable => return Action::Rest,
        Some(fault) if now < fault.retry_at => return Action::Wait(fault.retry_at),
        _ => {}
    }
    match (desired.run_state, local.machine) {
        (RunState::Running, Machine::On { kill_at: None }) if local.epoch >= desired.boot_epoch => {
            if local.configured < desired.generation { Action::Configure } else { Action::Rest }
        }
        (RunState::Running, Machine::On { .. })
            if local.epoch >= desired.boot_epoch && matches!(desired.stop, StopMode::Asked { .. }) =>
        {
            // One that has begun to leave does so, and is started again.
            if local.leaving { Action::Rest } else { Action::Withdraw }
        }
        (RunState::Stopped, Machine::On { kill_at }) => stop(desired.stop, kill_at, now),
        (_, Machine::On { kill_at }) => stop(forced(desired.stop), kill_at, now),
        (RunState::Absent, Machine::Off) => Action::Remove,
        (RunState::Stopped, Machine::Off) if local.prepared_now() => Action::Rest,
        (RunState::Stopped, Machine::Off) => Action::Prepare,
        (RunState::Running, Machine::Off) => start(local, desired, now, backoff),
    }
}

/// How a machine ends that is in the way of what is wanted.
fn forced(mode: StopMode) -> StopMode {
    match mode {
        StopMode::Asked { grace_s } => StopMode::Graceful { grace_s },
        other => other,
    }
}

fn stop(mode: StopMode, kill_at: Option<Tick>, now: Tick) -> Action {
    match (mode, kill_at) {
        (StopMode::Hard, _) => Action::Kill,
        (StopMode::Graceful { grace_s } | StopMode::Asked { grace_s }, None) => Action::Shutdown { grace_s },
        (StopMode::Graceful { .. } | StopMode::Asked { .. }, Some(at)) if now < at => Action::Wait(at),
        (StopMode::Graceful { .. }, Some(_)) => Action::Kill,
        (StopMode::Asked { .. }, Some(_)) => Action::GiveUp,
    }
}

fn start(local: &Local, desired: &DesiredVm, now: Tick, backoff: Duration) -> Action {
    let (epoch, restarts) = match local.died {
        _ if local.epoch < desired.boot_epoch => (desired.boot_epoch, 0),
        None => (local.epoch, local.restarts),
        Some(died) => {
            if !may_restart(local, desired) {
                return Action::Rest;
            }
            let due = died.at + restart_backoff(backoff, local.restarts);
            if now < due {
                return Action::Wait(due);
            }
            (local.epoch, local.restarts + 1)
        }
    };
    if local.prepared_now() { Action::Start { epoch, restarts } } else { Action::Prepare }
}

/// The fault of a guest that was asked in vain.
pub fn given_up(local: &Local, now: Tick) -> Fault {
    Fault {
        generation: local.generation(),
        code: GUEST_STAYS.to_owned(),
        message: "the guest was asked to power off and has not done so".to_owned(),
        retryable: false,
        attempts: 1,
        retry_at: now,
    }
}

/// Whether a machine that died may be started again in its epoch.
fn may_restart(local: &Local, desired: &DesiredVm) -> bool {
    let policy = desired.spec.as_ref().map_or(RestartPolicy::Never, |s| s.restart_policy);
    policy == RestartPolicy::OnFailure
        && local.restarts < RestartPolicy::MAX_RESTARTS
        && local.died.is_some_and(|d| !d.clean)
}

/// True while a backoff runs before the next automatic start.
pub fn will_restart(local: &Local) -> bool {
    exited(local) && local.desired.as_ref().is_some_and(|d| may_restart(local, d)) && local.current_fault().is_none()
}

/// The machine died in the very epoch that it should be running in.
fn exited(local: &Local) -> bool {
    local.desired.as_ref().is_some_and(|d| {
        d.run_state == RunState::Running
            && local.machine == Machine::Off
            && local.died.is_some()
            && local.epoch >= d.boot_epoch
    })
}

/// What the VM is doing, in the words of the protocol.
pub fn phase(local: &Local) -> Phase {
    let Some(desired) = &local.desired else { return Phase::Absent };
    if local.gone {
        return Phase::Absent;
    }
    match (desired.run_state, local.machine) {
        (RunState::Running, Machine::On { kill_at: None }) if local.epoch >= desired.boot_epoch => Phase::Running,
        (_, Machine::On { .. }) => Phase::Stopping,
        (RunState::Absent, Machine::Off) => Phase::Stopped,
        (RunState::Running, Machine::Off) if exited(local) => Phase::Exited,
        (RunState::Running, Machine::Off) if local.prepared_now() => Phase::Starting,
        (RunState::Stopped, Machine::Off) if local.prepared_now() => Phase::Stopped,
        (_, Machine::Off) => Phase::Preparing,
    }
}

/// How far the node is with the generation it was last told.
pub fn outcome(local: &Local) -> Outcome {
    if let Some(fault) = local.current_fault() {
        let (code, message) = (fault.code.clone(), fault.message.clone());
        return Outcome::Failed { code, message, retryable: fault.retryable };
    }
    let wanted = local.desired.as_ref().map(|d| d.run_state);
    match (wanted, phase(local)) {
        (Some(RunState::Running), Phase::Running) | (Some(RunState::Stopped), Phase::Stopped) | (_, Phase::Absent) => {
            Outcome::Applied
        }
        // It stays as it is; that it died is for `phase` to say.
        (_, Phase::Exited) if !will_restart(local) => Outcome::Applied,
        _ => Outcome::Progress,
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
