//! Properties of the reconciler: a model of a node whose process may be killed between any two effects.

use std::collections::BTreeSet;

use holdfast_model::vm::VmSpec;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const BACKOFF: Duration = Duration::from_secs(5);

fn spec(policy: RestartPolicy) -> VmSpec {
    VmSpec {
        uuid: Uuid::nil(),
        name: "a".into(),
        app_id: String::new(),
        instance_id: String::new(),
        image: "image".into(),
        vcpu: 1,
        memory_mb: 64,
        disk_gb: 1,
        ports: vec![],
        compose_hash: String::new(),
        app_compose: "{}".into(),
        encrypted_env: None,
        user_config: None,
        restart_policy: policy,
    }
}

fn desired(generation: u64, run_state: RunState, stop: StopMode, boot_epoch: u64, policy: RestartPolicy) -> DesiredVm {
    let spec = (run_state != RunState::Absent).then(|| spec(policy));
    DesiredVm { uuid: Uuid::nil(), generation, run_state, stop, boot_epoch, spec }
}

/// What survives a crash of the node: files and processes.
#[derive(Default)]
struct Host {
    desired: Option<Arc<DesiredVm>>,
    disks: bool,
    /// Written before a start: epoch, restarts.
    intent: (u64, u64),
    /// Epochs of the processes that run. Two would be a disaster.
    processes: BTreeSet<u64>,
    died: bool,
    starts_by_policy: u32,
}

struct Node {
    host: Host,
    local: Local,
    now: Tick,
}

impl Node {
    fn boot(host: Host, now: Tick) -> Self {
        let machine = if host.processes.is_empty() { Machine::Off } else { Machine::On { kill_at: None } };
        let died = (host.died && machine == Machine::Off).then_some(Died { at: now, clean: false });
        let local = Local {
            desired: host.desired.clone(),
            machine,
            epoch: host.intent.0,
            restarts: u32::try_from(host.intent.1).unwrap_or(0),
            died,
            ..Local::default()
        };
        Self { host, local, now }
    }

    fn receive(&mut self, news: &DesiredVm) {
        if self.local.accepts(news) {
            let news = Arc::new(news.clone());
            self.host.desired = Some(news.clone());
            self.local.desired = Some(news);
            self.local.gone = false;
        }
    }

    /// Carries out one action, or only its first half when `crash`.
    fn step(&mut self, crash: bool) -> bool {
        let action = decide(&self.local, self.now, BACKOFF);
        match action {
            Action::Rest => return false,
            Action::Wait(until) => {
                assert!(until > self.now, "a wait must end in the future");
                self.now = until;
            }
            Action::Prepare => {
                self.host.disks = true;
                self.local.prepared = Some(self.local.generation());
            }
            Action::Start { epoch, restarts } => {
                assert!(self.host.disks, "started without disks");
                if restarts > self.local.restarts && epoch == self.local.epoch {
                    self.host.starts_by_policy += 1;
                }
                self.host.intent = (epoch, u64::from(restarts));
                self.host.died = false;
                if !crash {
                    assert!(self.host.processes.insert(epoch) && self.host.processes.len() == 1, "two machines");
                    self.local.machine = Machine::On { kill_at: None };
                    self.local.configured = self.local.generation();
                }
                (self.local.epoch, self.local.restarts, self.local.died) = (epoch, restarts, None);
            }
            Action::Configure => {
                let newest = self.local.generation();
                assert!(self.local.configured < newest && !self.host.processes.is_empty(), "configured for nothing");
                if !crash {
                    self.local.configured = newest;
                }
            }
            Action::Shutdown { grace_s } => {
                self.local.machine = Machine::On { kill_at: Some(self.now + Duration::from_secs(grace_s.into())) };
            }
            Action::GiveUp => self.local.fault = Some(given_up(&self.local, self.now)),
            Action::Withdraw => {
                assert!(!self.local.leaving, "it was not asked in vain");
                self.local.machine = Machine::On { kill_at: None };
            }
            Action::Kill => {
                self.host.processes.clear();
                self.local.machine = Machine::Off;
            }
            Action::Remove => {
                assert!(self.host.processes.is_empty(), "removed under a running machine");
                self.host.disks = false;
                self.host.intent = (0, 0);
                if !crash {
                    self.host.desired = None;
                    self.local.gone = true;
                }
            }
        }
        true
    }

    fn die(&mut self) {
        if !self.host.processes.is_empty() {
            self.host.processes.clear();
            self.host.died = true;
            let commanded = matches!(self.local.machine, Machine::On { kill_at: Some(_) });
            self.local.machine = Machine::Off;
            self.local.died = (!commanded).then_some(Died { at: self.now, clean: false });
        }
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            if !self.step(false) {
                return;
            }
        }
        panic!("does not settle: {:?}", self.local);
    }
}

fn run_states() -> impl Strategy<Value = RunState> {
    prop_oneof![4 => Just(RunState::Running), 2 => Just(RunState::Stopped)]
}

fn stops() -> impl Strategy<Value = StopMode> {
    let graceful = (0u32..30).prop_map(|grace_s| StopMode::Graceful { grace_s });
    prop_oneof![2 => Just(StopMode::Hard), 2 => graceful, 1 => (0u32..30).prop_map(|grace_s| StopMode::Asked { grace_s })]
}

fn policies() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

/// A history of generations 1.. with an epoch that never falls; the last may be a tombstone.
fn histories() -> impl Strategy<Value = Vec<DesiredVm>> {
    let entry = (run_states(), stops(), 0u64..2, policies());
    (prop::collection::vec(entry, 1..8), any::<bool>()).prop_map(|(entries, tombstone)| {
        let mut epoch = 1;
        let mut history = Vec::new();
        for (i, (run_state, stop, raise, policy)) in entries.into_iter().enumerate() {
            epoch += raise;
            history.push(desired(i as u64 + 1, run_state, stop, epoch, policy));
        }
        if tombstone {
            let last = history.len() as u64 + 1;
            history.push(desired(last, RunState::Absent, StopMode::Hard, epoch, RestartPolicy::Never));
        }
        history
    })
}

#[derive(Debug, Clone)]
enum Event {
    Deliver(prop::sample::Index),
    Step,
    Crash,
    Die,
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => any::<prop::sample::Index>().prop_map(Event::Deliver),
        6 => Just(Event::Step),
        2 => Just(Event::Crash),
        1 => Just(Event::Die),
        1 => (0u64..100).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 0..60)
}

proptest! {
    #[test]
    fn any_order_loss_repetition_and_crash_converge(history in histories(), events in events()) {
        let mut node = Node::boot(Host::default(), Duration::ZERO);
        for event in &events {
            match event {
                Event::Deliver(i) => node.receive(i.get(&history)),
                Event::Step => { node.step(false); }
                Event::Crash => {
                    node.step(true);
                    node = Node::boot(node.host, node.now);
                }
                Event::Die => node.die(),
                Event::Pass(s) => node.now += Duration::from_secs(*s),
            }
        }
        let last = history.last().expect("not empty");
        node.receive(last);
        node.settle();
        let wanted = last.run_state;
        let on: Vec<_> = node.host.processes.iter().copied().collect();
        match wanted {
            RunState::Absent => {
                prop_assert!(on.is_empty() && !node.host.disks && node.host.desired.is_none());
                prop_assert_eq!(phase(&node.local), Phase::Absent);
            }
            RunState::Stopped => {
                if let Outcome::Failed { code, .. } = outcome(&node.local) {
                    let asked = matches!(last.stop, StopMode::Asked { .. });
                    prop_assert!(asked && on.len() == 1);
                    prop_assert_eq!(code.as_str(), GUEST_STAYS);
                } else {
                    prop_assert!(on.is_empty() && node.host.disks);
                    prop_assert_eq!(phase(&node.local), Phase::Stopped);
                }
            }
            RunState::Running if phase(&node.local) == Phase::Exited => {
                prop_assert!(on.is_empty() && !will_restart(&node.local));
            }
            RunState::Running => {
                prop_assert_eq!(on, vec![last.boot_epoch]);
                prop_assert_eq!(outcome(&node.local), Outcome::Applied);
            }
        }
    }

    #[test]
    fn stale_generations_are_refused(history in histories(), order in prop::collection::vec(any::<prop::sample::Index>(), 1..30)) {
        let mut node = Node::boot(Host::default(), Duration::ZERO);
        let mut highest = 0;
        for index in order {
            let news = index.get(&history);
            node.receive(news);
            highest = highest.max(news.generation);
            prop_assert_eq!(node.local.generation(), highest);
        }
    }
}

fn running(policy: RestartPolicy) -> Node {
    let mut node = Node::boot(Host::default(), Duration::ZERO);
    node.receive(&desired(1, RunState::Running, StopMode::Hard, 1, policy));
    node.settle();
    assert_eq!(phase(&node.local), Phase::Running);
    node
}

#[test]
fn a_machine_that_keeps_dying_is_started_five_more_times() {
    let mut node = running(RestartPolicy::OnFailure);
    let mut waits = Vec::new();
    loop {
        node.die();
        assert_eq!(phase(&node.local), Phase::Exited);
        let before = node.now;
        node.settle();
        if node.host.processes.is_empty() {
            break;
        }
        waits.push((node.now - before).as_secs());
    }
    assert_eq!(waits, [5, 10, 20, 40, 80]);
    assert_eq!(node.host.starts_by_policy, RestartPolicy::MAX_RESTARTS);
    assert_eq!((outcome(&node.local), will_restart(&node.local)), (Outcome::Applied, false));
    node.receive(&desired(2, RunState::Running, StopMode::Hard, 2, RestartPolicy::OnFailure));
    node.settle();
    assert_eq!((phase(&node.local), node.local.restarts), (Phase::Running, 0));
}

#[test]
fn never_means_never_and_a_clean_end_is_no_failure() {
    let mut node = running(RestartPolicy::Never);
    node.die();
    node.settle();
    assert_eq!(phase(&node.local), Phase::Exited);

    let mut node = running(RestartPolicy::OnFailure);
    node.die();
    node.local.died = Some(Died { at: node.now, clean: true });
    node.settle();
    assert_eq!(phase(&node.local), Phase::Exited);
    assert!(!will_restart(&node.local));
}

#[test]
fn a_running_guest_is_told_of_each_newer_generation_once_and_restarted_only_for_an_epoch() {
    let mut node = running(RestartPolicy::Never);
    let (generation, epoch) = (node.local.generation(), node.local.epoch);
    node.receive(&desired(generation + 1, RunState::Running, StopMode::Hard, epoch, RestartPolicy::Never));
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Configure);
    assert_eq!((phase(&node.local), outcome(&node.local)), (Phase::Running, Outcome::Applied));
    node.step(false);
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Rest);
    // One that is to start anew, or is being stopped, is not told.
    node.receive(&desired(generation + 2, RunState::Running, StopMode::Hard, epoch + 1, RestartPolicy::Never));
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Kill);
    node.settle();
    assert_eq!((node.local.epoch, node.local.configured), (epoch + 1, generation + 2));
    node.receive(&desired(generation + 3, RunState::Stopped, StopMode::Hard, epoch + 1, RestartPolicy::Never));
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Kill);
}

#[test]
fn a_fault_is_retried_later_and_forgotten_by_the_next_generation() {
    let mut node = Node::boot(Host::default(), Duration::ZERO);
    node.receive(&desired(1, RunState::Running, StopMode::Hard, 1, RestartPolicy::Never));
    let fault = |retryable| Fault {
        generation: 1,
        code: "port_in_use".into(),
        message: String::new(),
        retryable,
        attempts: 1,
        retry_at: Fault::retry_at(Duration::ZERO, 1, 0.0),
    };
    node.local.fault = Some(fault(true));
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Wait(Duration::from_secs(1)));
    assert!(matches!(outcome(&node.local), Outcome::Failed { retryable: true, .. }));
    assert_eq!(decide(&node.local, Duration::from_secs(1), BACKOFF), Action::Prepare);
    node.local.fault = Some(fault(false));
    assert_eq!(decide(&node.local, Duration::from_secs(99), BACKOFF), Action::Rest);
    node.receive(&desired(2, RunState::Running, StopMode::Hard, 1, RestartPolicy::Never));
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Prepare);
    assert_eq!(Fault::retry_at(Duration::ZERO, 40, 0.0), RETRY_MAX);
    // Many VMs whose steps failed together do not try again together.
    assert_eq!(Fault::retry_at(Duration::from_secs(7), 2, 0.5), Duration::from_millis(8500));
    assert_eq!(Fault::retry_at(Duration::ZERO, 40, 1.0), RETRY_MAX / 2);
}

/// A machine that was asked to stop, and never more than that.
fn asked() -> Node {
    let mut node = running(RestartPolicy::Never);
    node.receive(&desired(2, RunState::Stopped, StopMode::Asked { grace_s: 60 }, 1, RestartPolicy::Never));
    node.step(false);
    assert_eq!(phase(&node.local), Phase::Stopping);
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Wait(Duration::from_secs(60)));
    node
}

#[test]
fn a_guest_that_is_only_asked_is_never_killed() {
    let mut node = asked();
    assert_eq!(decide(&node.local, Duration::from_secs(60), BACKOFF), Action::GiveUp);
    node.now = Duration::from_secs(60);
    node.step(false);
    assert_eq!(decide(&node.local, Duration::from_secs(9999), BACKOFF), Action::Rest);
    assert_eq!(phase(&node.local), Phase::Stopping);
    let Outcome::Failed { code, retryable, .. } = outcome(&node.local) else { panic!("no failure") };
    assert_eq!((code.as_str(), retryable), (GUEST_STAYS, false));
    // Asked for by force after all.
    node.receive(&desired(3, RunState::Stopped, StopMode::Hard, 1, RestartPolicy::Never));
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Kill);
}

#[test]
fn a_guest_that_was_asked_in_vain_runs_on_and_one_that_heard_it_starts_again() {
    let back = desired(3, RunState::Running, StopMode::Asked { grace_s: 60 }, 1, RestartPolicy::Never);
    let mut node = asked();
    node.receive(&back);
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Withdraw);
    node.settle();
    assert_eq!(phase(&node.local), Phase::Running);
    assert_eq!(node.host.processes.len(), 1, "the same machine");

    let mut node = asked();
    node.local.leaving = true;
    node.receive(&back);
    assert_eq!(decide(&node.local, Duration::from_secs(9999), BACKOFF), Action::Rest, "it leaves in its own time");
    assert_eq!(phase(&node.local), Phase::Stopping);
    node.die();
    node.local.leaving = false;
    node.settle();
    assert_eq!((phase(&node.local), node.local.epoch), (Phase::Running, 1));
}

#[test]
fn a_hard_stop_overtakes_a_graceful_one() {
    let mut node = running(RestartPolicy::Never);
    node.receive(&desired(2, RunState::Stopped, StopMode::Graceful { grace_s: 60 }, 1, RestartPolicy::Never));
    node.step(false);
    assert_eq!(phase(&node.local), Phase::Stopping);
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Wait(Duration::from_secs(60)));
    node.receive(&desired(3, RunState::Stopped, StopMode::Hard, 1, RestartPolicy::Never));
    assert_eq!(decide(&node.local, node.now, BACKOFF), Action::Kill);
}
