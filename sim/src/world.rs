//! One run: a queue of events in simulated time, and everything that they happen to.
//!
//! The one rule: an event happens whole or not at all, and the invariants are checked after each. Between two events
//! anything may be killed; what was under way then never happens.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_engine::{Deadlines, Decision};
use holdfast_model::Timestamp;

use crate::Options;
use crate::broken::Broken;
use crate::check::Checker;
use crate::faults::{Faults, Misfortune};
use crate::host::{Host, Life};
use crate::net::{Answer, Call, Poll};
use crate::node::{Act, Node};
use crate::rng::Rng;
use crate::store::{Claimed, Store};

pub const SECOND: u64 = 1_000_000;
/// The server's clock begins here.
const EPOCH: i64 = 1_700_000_000_000_000;
/// Longest time that a healthy world may take to settle.
const SETTLE: u64 = 3600 * SECOND;
const MAX_EVENTS: u64 = 400_000;

#[derive(Debug)]
pub enum Event {
    /// A client asks for something.
    Client,
    /// Something goes wrong.
    Fault,
    /// From here on nothing goes wrong any more.
    Heal,
    /// Is everything as it should be, and at rest?
    Settled,
    WorkerLook {
        worker: usize,
        life: u64,
    },
    WorkerBell {
        worker: usize,
        life: u64,
    },
    WorkerAdvance {
        worker: usize,
        life: u64,
        claimed: Claimed,
    },
    /// A worker that slept between its decision and its write.
    WorkerWrite {
        worker: usize,
        life: u64,
        claimed: Claimed,
        decision: Box<Decision>,
        versions: (u64, u64),
    },
    ToServer {
        node: usize,
        call: Call,
    },
    ToNode {
        node: usize,
        session: u64,
        answer: Answer,
    },
    /// A long poll has waited long enough.
    PollEnds {
        id: u64,
    },
    /// A call of the node has gone without an answer for too long.
    CallTimeout {
        node: usize,
        session: u64,
        call: u64,
    },
    NodeBeat {
        node: usize,
        session: u64,
    },
    VmWake {
        node: usize,
        session: u64,
        vm: usize,
    },
    VmEffect {
        node: usize,
        session: u64,
        vm: usize,
        act: Act,
    },
    VmDone {
        node: usize,
        session: u64,
        vm: usize,
        act: Act,
        result: Result<(), Misfortune>,
    },
    Guest {
        node: usize,
        vm: usize,
        machine: u64,
        life: Life,
    },
    NodeStart {
        node: usize,
    },
    ServerStart,
    WorkerStart {
        worker: usize,
    },
}

#[derive(Debug, Default)]
pub struct Worker {
    pub up: bool,
    pub life: u64,
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub store: Store,
    pub workers: Vec<Worker>,
    pub nodes: Vec<Node>,
    pub hosts: Vec<Host>,
    pub polls: Vec<Poll>,
    pub server_up: bool,
    /// How far the server's clock is from true time.
    pub clock_offset: i64,
    pub faults: Faults,
    pub deadlines: Deadlines,
    pub broken: Option<Broken>,
    pub check: Checker,
    /// First broken invariant.
    pub violation: Option<String>,
    pub events: u64,
    pub trace: Option<Vec<String>>,
    pub finished: bool,
    healed_at: u64,
    hash: u64,
    next_id: u64,
    queue: BTreeMap<(u64, u64), Event>,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> Self {
        let mut rng = Rng::new(seed);
        let (nodes, workers) = (1 + rng.index(3), 2 + rng.index(2));
        let faults = Faults::new(&mut rng);
        let seconds = Duration::from_secs;
        let mut world = Self {
            now: 0,
            store: Store::new(nodes, options.broken),
            workers: (0..workers).map(|_| Worker::default()).collect(),
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            hosts: (0..nodes).map(|_| Host::default()).collect(),
            polls: Vec::new(),
            server_up: false,
            clock_offset: 0,
            faults,
            deadlines: Deadlines {
                prepare: seconds(40),
                start: seconds(30),
                boot: seconds(40),
                launch: seconds(60),
                stop: seconds(60),
                remove: seconds(60),
            },
            broken: options.broken,
            check: Checker::default(),
            violation: None,
            events: 0,
            trace: options.trace.then(Vec::new),
            finished: false,
            healed_at: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            next_id: 1,
            queue: BTreeMap::new(),
            rng,
        };
        world.at(0, Event::ServerStart);
        for node in 0..nodes {
            world.after(SECOND / 100, Event::NodeStart { node });
        }
        world.after(SECOND, Event::Client);
        world.after(5 * SECOND, Event::Fault);
        let calm = world.rng.range(200, 900) * SECOND;
        world.after(calm, Event::Heal);
        world
    }

    /// Runs to the end, or to the first broken invariant.
    pub fn run(&mut self) {
        while let Some(((time, _), event)) = self.queue.pop_first() {
            self.now = time;
            self.events += 1;
            self.note(|_| format!("{event:?}"));
            self.mark(&[time, self.rng.clone().next()]);
            self.happen(event);
            if self.violation.is_none() {
                self.violation = crate::check::after(self);
            }
            if self.violation.is_none() && self.events > MAX_EVENTS {
                self.violation = Some("liveness: too many events".to_owned());
            }
            if self.finished || self.violation.is_some() {
                break;
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Client => self.client_acts(),
            Event::Fault => self.fault_strikes(),
            Event::Heal => self.heal(),
            Event::Settled => self.settle(),
            Event::WorkerLook { worker, life } => self.worker_look(worker, life),
            Event::WorkerBell { worker, life } => self.worker_claims(worker, life),
            Event::WorkerAdvance { worker, life, claimed } => self.worker_advance(worker, life, claimed),
            Event::WorkerWrite { worker, life, claimed, decision, versions } => {
                self.worker_write_late(worker, life, claimed, &decision, versions);
            }
            Event::ToServer { node, call } => self.server_hears(node, call),
            Event::ToNode { node, session, answer } => self.node_hears(node, session, answer),
            Event::PollEnds { id } => self.poll_ends(id),
            Event::CallTimeout { node, session, call } => self.call_timeout(node, session, call),
            Event::NodeBeat { node, session } => self.node_beat(node, session),
            Event::VmWake { node, session, vm } => self.vm_wake(node, session, vm),
            Event::VmEffect { node, session, vm, act } => self.vm_effect(node, session, vm, act),
            Event::VmDone { node, session, vm, act, result } => self.vm_done(node, session, vm, act, result),
            Event::Guest { node, vm, machine, life } => self.guest_lives(node, vm, machine, life),
            Event::NodeStart { node } => self.node_start(node),
            Event::ServerStart => self.server_start(),
            Event::WorkerStart { worker } => self.worker_start(worker),
        }
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn at(&mut self, time: u64, event: Event) {
        let id = self.id();
        self.queue.insert((time.max(self.now), id), event);
    }

    /// A number that no one else has.
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// What the server's clock shows.
    pub fn clock(&self) -> Timestamp {
        let now = i64::try_from(self.now).unwrap_or(i64::MAX);
        Timestamp(EPOCH.saturating_add(now).saturating_add(self.clock_offset))
    }

    /// A line of the trace, made only when somebody reads it.
    pub fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let (seconds, micros) = (self.now / SECOND, self.now % SECOND);
            let line = format!("{seconds:>6}.{micros:06} {}", line(self));
            if let Some(trace) = &mut self.trace {
                trace.push(line);
            }
        }
    }

    /// Makes numbers part of what a replay must repeat.
    pub fn mark(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
        }
    }

    pub fn trace_hash(&self) -> u64 {
        self.hash
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(what.into());
        }
    }

    fn heal(&mut self) {
        self.faults.stop();
        self.healed_at = self.now;
        for host in &mut self.hosts {
            host.full_until = 0;
        }
        if !self.server_up {
            self.after(0, Event::ServerStart);
        }
        for worker in 0..self.workers.len() {
            if !self.workers[worker].up {
                self.after(0, Event::WorkerStart { worker });
            }
        }
        for node in 0..self.nodes.len() {
            if !self.nodes[node].up {
                self.after(0, Event::NodeStart { node });
            }
        }
        self.after(30 * SECOND, Event::Settled);
    }

    fn settle(&mut self) {
        // A person looks at last after what holds others up.
        let now = self.clock();
        for op in self.store.in_the_way() {
            self.store.abandon(op, now);
        }
        match crate::check::unsettled(self) {
            None => self.finished = true,
            Some(why) if self.now > self.healed_at + SETTLE => self.fail(format!("liveness: {why}")),
            Some(_) => self.after(31 * SECOND, Event::Settled),
        }
    }
}
