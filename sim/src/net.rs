//! The network between nodes and server, and the server's side of the node protocol.
//!
//! The one rule: what is sent may arrive late, twice, in another order or never. An answer of an older session of the
//! node is not heard: it was on a connection that died with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_model::node::VmReport;

use crate::store::{Heard, Row};
use crate::world::{Event, SECOND, World};

/// How long the server keeps a question for news open.
const LONGEST_POLL: u64 = 25 * SECOND;

/// The newest reports of some VMs.
pub type Batch = Arc<BTreeMap<usize, Arc<VmReport>>>;

/// Node to server.
#[derive(Debug, Clone)]
pub enum Call {
    Register { session: u64, id: u64 },
    Desired { session: u64, id: u64, since: u64 },
    Report { session: u64, id: u64, seq: u64, vms: Batch },
}

/// Server to node, about the call `id`.
#[derive(Debug, Clone)]
pub enum Answer {
    Registered { id: u64 },
    Page { id: u64, since: u64, revision: u64, rows: Arc<Vec<(usize, Row)>> },
    Ack { id: u64 },
    Stale,
}

/// A question for news that waits at the server.
#[derive(Debug)]
pub struct Poll {
    id: u64,
    node: usize,
    session: u64,
    since: u64,
}

impl World {
    /// Delays of the copies that arrive.
    fn weather(&mut self, node: usize) -> Vec<u64> {
        if self.now < self.faults.cut_until[node] || self.rng.chance(self.faults.drop) {
            return Vec::new();
        }
        let copies = if self.rng.chance(self.faults.repeat) { 2 } else { 1 };
        let mut delay = |_| {
            let slow = self.rng.chance(self.faults.slow);
            self.rng.range(200, if slow { 30 * SECOND } else { 30_000 })
        };
        (0..copies).map(&mut delay).collect()
    }

    pub fn send_call(&mut self, node: usize, call: &Call) {
        for delay in self.weather(node) {
            self.after(delay, Event::ToServer { node, call: call.clone() });
        }
    }

    fn send_answer(&mut self, node: usize, session: u64, answer: &Answer) {
        for delay in self.weather(node) {
            self.after(delay, Event::ToNode { node, session, answer: answer.clone() });
        }
    }

    pub fn server_hears(&mut self, node: usize, call: Call) {
        if !self.server_up {
            return;
        }
        let now = self.clock();
        match call {
            Call::Register { session, id } => {
                self.store.register(node, session, now);
                self.send_answer(node, session, &Answer::Registered { id });
            }
            Call::Desired { session, .. } if self.store.homes[node].session != session => {
                self.send_answer(node, session, &Answer::Stale);
            }
            Call::Desired { session, id, since } => {
                self.polls.push(Poll { id, node, session, since });
                self.answer_polls(|poll| poll.id == id);
                self.after(LONGEST_POLL, Event::PollEnds { id });
            }
            Call::Report { session, id, seq, vms } => match self.store.report(node, session, seq, &vms, now) {
                Heard::Stale => self.send_answer(node, session, &Answer::Stale),
                Heard::Taken { woken } => {
                    self.send_answer(node, session, &Answer::Ack { id });
                    if woken {
                        self.ring_work();
                    }
                }
            },
        }
    }

    /// Desired state has changed: whoever waits for that is answered.
    pub fn ring_desired(&mut self) {
        self.answer_polls(|_| true);
    }

    fn answer_polls(&mut self, which: impl Fn(&Poll) -> bool) {
        let polls = std::mem::take(&mut self.polls);
        for poll in polls {
            let home = &self.store.homes[poll.node];
            if !which(&poll) {
                self.polls.push(poll);
            } else if home.session != poll.session {
                self.send_answer(poll.node, poll.session, &Answer::Stale);
            } else if home.revision > poll.since {
                let (revision, rows) = self.store.page(poll.node, poll.since);
                let (id, since) = (poll.id, poll.since);
                let page = Answer::Page { id, since, revision, rows: Arc::new(rows) };
                self.send_answer(poll.node, poll.session, &page);
            } else {
                self.polls.push(poll);
            }
        }
    }

    pub fn poll_ends(&mut self, id: u64) {
        let Some(index) = self.polls.iter().position(|p| p.id == id) else { return };
        let poll = self.polls.remove(index);
        let page = Answer::Page { id, since: poll.since, revision: poll.since, rows: Arc::default() };
        self.send_answer(poll.node, poll.session, &page);
    }
}
