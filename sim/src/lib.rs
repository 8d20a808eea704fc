//! A seeded simulator of the whole control plane: clients, workers with the real engine, nodes with the real reconciler,
//! a network that loses and repeats, and faults at any moment.
//!
//! The one rule: a run depends on its seed alone. No wall clock, no threads, no map without an order; so a seed that
//! fails once fails for ever, and is replayed with its whole trace.
//!
//! ```text
//!   clients -> store (rules of holdfast-store) <- workers: holdfast_engine::decide
//!                 |   ^
//!            pages|   |reports          network: late, twice, reordered, never
//!                 v   |
//!               nodes: holdfast_node::reconcile -> hosts: disks, machines, guests
//! ```
//! After each event `check` holds the world against the invariants; when faults have stopped, everything must finish.

#![forbid(unsafe_code)]

mod broken;
mod check;
mod faults;
mod host;
mod net;
mod node;
mod rng;
mod store;
mod task;
mod worker;
mod world;

pub use broken::Broken;

/// How to run a seed.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Keep a line per event.
    pub trace: bool,
    /// A rule that is broken on purpose.
    pub broken: Option<Broken>,
}

/// What became of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The first invariant that did not hold.
    pub violation: Option<String>,
    pub events: u64,
    /// Equal for equal runs.
    pub hash: u64,
    pub trace: Vec<String>,
    pub tally: Tally,
}

/// What a run was made of: a simulator in which nothing happens proves nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub vms: usize,
    pub done: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub stuck: usize,
    /// Operations that had to wait for their turn.
    pub waited: usize,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.vms += other.vms;
        self.done += other.done;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.stuck += other.stuck;
        self.waited += other.waited;
    }
}

/// Runs one seed to its end or to the first broken invariant.
pub fn run(seed: u64, options: &Options) -> Outcome {
    use holdfast_model::operation::Status;
    let mut world = world::World::new(seed, options);
    world.run();
    let count = |status| world.store.ops.iter().filter(|op| op.record.status == status).count();
    let tally = Tally {
        vms: world.store.vms.len(),
        done: count(Status::Done),
        failed: count(Status::Failed),
        cancelled: count(Status::Cancelled),
        stuck: count(Status::Stuck),
        waited: world.store.ops.iter().filter(|op| op.waited).count(),
    };
    let hash = world.trace_hash();
    Outcome {
        violation: world.violation.take(),
        events: world.events,
        hash,
        trace: world.trace.take().unwrap_or_default(),
        tally,
    }
}
