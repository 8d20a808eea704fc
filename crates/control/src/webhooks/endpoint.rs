//! What the dispatcher knows of one endpoint: which events were handed to it, which of them may be sent now, and how far it
//! has come. Pure: the dispatcher around it sends and writes.
//!
//! The one rule: of each lane (the events of one CVM) one message is under way at most, and what comes after one that
//! failed waits in the database behind it. The endpoint's position never passes an event that is not written down.
//!
//! ```text
//!  event -> lane is blocked ----------------------------------------------> held (written, not due)
//!    '----> queued -> under way -> taken by the receiver -----------------> success (written)
//!                         '------> failed: the lane is blocked -----------> pending (written, due after a pause)
//!  row that is due -> under way -> taken -> success (written); nothing of its lane waits: it is not blocked any more
//!                         '------> failed -> pending, or failed for good: the next one of its lane is due
//! ```
//!
//! | standing | attempts at once | share |
//! |---|---|---|
//! | new: nothing was taken yet, the last was refused, or taken slowly | 1 | that of everybody |
//! | good: the last one was taken quickly | [`AT_ONCE`]; 1 while places are scarce | that of everybody |
//! | slow: it hangs, or cannot be reached | 1 | that of the slow ones |

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::webhook_deliveries::{Delivery, DeliveryStatus, Progress, Told};
use holdfast_store::webhook_feed::Heard;

use super::message::{self, Events, Message, events_of};
use super::send::{Attempt, Secrets};

/// Attempts of one endpoint at once.
pub const AT_ONCE: usize = 16;
/// Messages of one endpoint in memory, when it takes them, and when it does not.
const WINDOW: usize = 256;
const SLOW_WINDOW: usize = 8;
/// Messages of one endpoint that wait in the database; beyond, it reads no further events.
const MOST_WAITING: i64 = 10_000;
/// Between attempts.
pub const PAUSES: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];
/// An attempt that takes longer hangs, and no longer counts as one of the quick ones.
pub const HANGS: Duration = Duration::from_millis(500);
/// Deliveries written between two cuts of the history.
const CUT_EVERY: usize = 200;

/// A message on its way to one endpoint.
#[derive(Debug, Clone)]
pub struct Job {
    pub webhook: i64,
    pub epoch: i64,
    pub message: Arc<Message>,
    pub lane: String,
    pub sequence: i64,
    /// Its row, when it waits in the database.
    pub row: Option<i64>,
    /// Attempts before this one.
    pub attempts: i64,
    /// When its event happened.
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    New,
    Good,
    Slow,
}

#[derive(Default)]
struct Lane {
    /// One of its messages is under way.
    busy: bool,
    /// One of its messages waits in the database.
    blocked: bool,
    queue: VecDeque<Job>,
    /// Messages that are to wait in the database and are not written yet.
    unwritten: usize,
}

impl Lane {
    fn is_idle(&self) -> bool {
        !self.busy && !self.blocked && self.queue.is_empty() && self.unwritten == 0
    }
}

/// One endpoint.
pub struct Endpoint {
    pub id: i64,
    pub workspace: i64,
    pub epoch: i64,
    /// Of the row that the fields below were read from.
    pub updated_at: i64,
    pub url: Arc<str>,
    pub events: Events,
    pub secrets: Arc<Secrets>,
    pub standing: Standing,
    /// It is handed events as they come; otherwise it reads what it missed.
    pub live: bool,
    /// Everything up to here was handed to it, or is not for it.
    pub cursor: i64,
    /// The position that was written last.
    pub saved: i64,
    /// Messages that wait in the database.
    pub waiting: i64,
    /// Its last attempt's number among all that the dispatcher began.
    pub turn: u64,
    running: usize,
    /// Messages queued or under way that have no row.
    in_memory: usize,
    lanes: HashMap<String, Lane>,
    ready: VecDeque<String>,
    /// Rows that are due, and those of them that are not written again yet.
    due: VecDeque<Job>,
    taken: HashSet<i64>,
    /// Messages by position that are not written yet.
    open: BTreeMap<i64, usize>,
    /// Sequences that the process before this one wrote down.
    known: HashSet<i64>,
    /// How the last attempt ended, since progress was written.
    last: Option<Option<Timestamp>>,
    written: usize,
}

impl Endpoint {
    /// An endpoint that goes on after `position`. `waiting`: lanes in which something waits; `known`: sequences after the
    /// position that are written down already.
    pub fn new(
        (id, workspace, epoch): (i64, i64, i64),
        (url, events, secrets): (Arc<str>, Events, Arc<Secrets>),
        position: i64,
        waiting: Vec<(String, i64)>,
        known: Vec<i64>,
        standing: Standing,
    ) -> Self {
        let waiting: Vec<_> = waiting.into_iter().filter(|(lane, _)| !lane.is_empty()).collect();
        let count = waiting.iter().map(|(_, count)| count).sum();
        Self {
            id,
            workspace,
            epoch,
            updated_at: 0,
            url,
            events,
            secrets,
            standing,
            live: false,
            cursor: position,
            saved: position,
            waiting: count,
            turn: 0,
            running: 0,
            in_memory: 0,
            lanes: waiting.into_iter().map(|(lane, _)| (lane, Lane { blocked: true, ..Lane::default() })).collect(),
            ready: VecDeque::new(),
            due: VecDeque::new(),
            taken: HashSet::new(),
            open: BTreeMap::new(),
            known: known.into_iter().collect(),
            last: None,
            written: 0,
        }
    }

    /// Whether it can be handed more events.
    pub fn has_room(&self) -> bool {
        self.in_memory < self.window() && self.waiting < MOST_WAITING
    }

    /// Events that it reads at once.
    pub fn page(&self) -> i64 {
        i64::try_from(self.window()).unwrap_or(1)
    }

    fn window(&self) -> usize {
        if self.standing == Standing::Slow { SLOW_WINDOW } else { WINDOW }
    }

    /// Hands it an event. What has to wait in the database goes to `told`.
    pub fn hear(&mut self, heard: &Heard, shared: &mut Shared, told: &mut Vec<Told>) -> Result<(), Error> {
        if heard.position <= self.cursor {
            return Ok(());
        }
        for (turn, event) in (0..).zip(events_of(heard)) {
            let Some(event) = event.filter(|event| self.events.has(*event)) else { continue };
            let sequence = heard.position * message::MOST + turn;
            if self.known.remove(&sequence) {
                continue;
            }
            let job = Job {
                webhook: self.id,
                epoch: self.epoch,
                message: shared.message(heard, event, sequence)?,
                lane: heard.resource_uuid.clone(),
                sequence,
                row: None,
                attempts: 0,
                created_at: Timestamp(heard.at),
            };
            *self.open.entry(heard.position).or_default() += 1;
            let lane = self.lanes.entry(job.lane.clone()).or_default();
            if lane.blocked {
                told.push(hold(lane, &job, &self.url));
                continue;
            }
            self.in_memory += 1;
            let first = lane.queue.is_empty() && !lane.busy;
            lane.queue.push_back(job);
            if first {
                self.ready.push_back(heard.resource_uuid.clone());
            }
        }
        self.cursor = heard.position;
        Ok(())
    }

    /// How many rows that are due it would take.
    pub fn due_room(&self) -> usize {
        self.window().saturating_sub(self.due.len())
    }

    /// True for a row that it has already.
    pub fn has_taken(&self, row: i64) -> bool {
        self.taken.contains(&row)
    }

    /// Hands it a row that is due.
    pub fn retry(&mut self, row: Delivery) {
        if !self.taken.insert(row.id) {
            return;
        }
        // A resend is the event that it repeats.
        let id = if row.original_event_id.is_empty() { row.event_id } else { row.original_event_id };
        let message = Message { id, name: message::name_of(&row.event_type), body: row.body };
        self.due.push_back(Job {
            webhook: self.id,
            epoch: self.epoch,
            message: Arc::new(message),
            lane: row.lane,
            sequence: row.sequence,
            row: Some(row.id),
            attempts: row.attempts,
            created_at: Timestamp(row.created_at),
        });
    }

    /// Whether there may be something for [`Endpoint::take_next`]. `scarce`: one place is the most for everybody.
    pub fn may_begin(&self, scarce: bool) -> bool {
        let at_once = if self.standing == Standing::Good && !scarce { AT_ONCE } else { 1 };
        self.running < at_once && !(self.due.is_empty() && self.ready.is_empty())
    }

    /// The next message that may be sent now. Whoever takes it says how it ended ([`Endpoint::ended`]).
    pub fn take_next(&mut self, scarce: bool) -> Option<Job> {
        if !self.may_begin(scarce) {
            return None;
        }
        let job = match self.due.pop_front() {
            Some(job) => job,
            None => loop {
                let name = self.ready.pop_front()?;
                let Some(lane) = self.lanes.get_mut(&name) else { continue };
                // Its queue is empty when the lane was blocked meanwhile.
                if let Some(job) = lane.queue.pop_front() {
                    lane.busy = true;
                    break job;
                }
            },
        };
        self.running += 1;
        Some(job)
    }

    /// An attempt hangs: until it is over no other one begins.
    pub fn hangs(&mut self) {
        self.standing = Standing::Slow;
    }

    /// An attempt is over. What has to be written goes to `told`.
    pub fn ended(&mut self, job: Job, attempt: &Attempt, began: Timestamp, told: &mut Vec<Told>) {
        self.running = self.running.saturating_sub(1);
        self.standing = match attempt.status {
            _ if attempt.succeeded() && attempt.took < HANGS => Standing::Good,
            0 => Standing::Slow,
            _ => Standing::New,
        };
        self.last = Some((!attempt.succeeded()).then_some(began));
        let attempts = job.attempts + 1;
        let pause =
            usize::try_from(job.attempts).ok().and_then(|done| PAUSES.get(done)).filter(|_| !attempt.succeeded());
        let ended = began.plus(attempt.took);
        let status = match pause {
            _ if attempt.succeeded() => DeliveryStatus::Success,
            Some(_) => DeliveryStatus::Pending,
            None => DeliveryStatus::Failed,
        };
        told.push(Told {
            status,
            next_at: pause.map(|pause| ended.plus(*pause)),
            attempts,
            response_status: attempt.status,
            error_message: attempt.error.clone(),
            duration_ms: i64::try_from(attempt.took.as_millis()).unwrap_or(i64::MAX),
            delivered_at: attempt.succeeded().then_some(ended),
            ..unsent(&job, &self.url)
        });
        if job.row.is_some() {
            return;
        }
        self.in_memory = self.in_memory.saturating_sub(1);
        let lane = self.lanes.entry(job.lane.clone()).or_default();
        lane.busy = false;
        if status == DeliveryStatus::Pending {
            lane.blocked = true;
            lane.unwritten += 1;
            while let Some(next) = lane.queue.pop_front() {
                self.in_memory = self.in_memory.saturating_sub(1);
                told.push(hold(lane, &next, &self.url));
            }
        } else if !lane.queue.is_empty() {
            self.ready.push_back(job.lane);
        } else if lane.is_idle() {
            self.lanes.remove(&job.lane);
        }
    }

    /// How far it has come when all of these are written. `live`: the position up to which live endpoints were handed
    /// everything.
    pub fn progress<'a>(&mut self, told: impl IntoIterator<Item = &'a Told>, live: i64) -> Progress {
        for one in told.into_iter().filter(|one| one.row.is_none()) {
            let position = one.sequence / message::MOST;
            if let Some(count) = self.open.get_mut(&position) {
                *count -= 1;
                if *count == 0 {
                    self.open.remove(&position);
                }
            }
            self.written += 1;
        }
        let reached = if self.live { self.cursor.max(live) } else { self.cursor };
        self.saved = self.open.first_key_value().map_or(reached, |(first, _)| first - 1);
        let cut = self.written >= CUT_EVERY;
        if cut {
            self.written = 0;
        }
        Progress { webhook: self.id, position: self.saved, last: self.last.take(), cut }
    }

    /// What was told of it is written.
    pub fn written(&mut self, told: &Told) {
        let pending = told.status == DeliveryStatus::Pending;
        match told.row {
            Some(row) => {
                self.taken.remove(&row);
                // Tests and resends are in no lane, and nobody counted them.
                self.waiting -= i64::from(!pending && !told.lane.is_empty());
            }
            None if pending => {
                self.waiting += 1;
                if let Some(lane) = self.lanes.get_mut(&told.lane) {
                    lane.unwritten = lane.unwritten.saturating_sub(1);
                }
            }
            None => {}
        }
    }

    /// Nothing of a lane waits in the database any more.
    pub fn clear(&mut self, lane: &str) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        if found.unwritten > 0 {
            return;
        }
        found.blocked = false;
        if found.is_idle() {
            self.lanes.remove(lane);
        }
    }
}

fn hold(lane: &mut Lane, job: &Job, url: &str) -> Told {
    lane.unwritten += 1;
    unsent(job, url)
}

/// What is written of a message that waits behind another one.
fn unsent(job: &Job, url: &str) -> Told {
    Told {
        webhook: job.webhook,
        row: job.row,
        event_id: job.message.id.clone(),
        event_type: job.message.name,
        lane: job.lane.clone(),
        sequence: job.sequence,
        body: if job.row.is_none() { job.message.body.clone() } else { String::new() },
        status: DeliveryStatus::Pending,
        next_at: None,
        attempts: job.attempts,
        request_url: url.to_owned(),
        response_status: 0,
        error_message: String::new(),
        duration_ms: 0,
        created_at: job.created_at,
        delivered_at: None,
    }
}

/// Messages of the page at hand, made once for all who are told.
#[derive(Default)]
pub struct Shared(HashMap<i64, Arc<Message>>);

impl Shared {
    fn message(&mut self, heard: &Heard, event: message::Event, sequence: i64) -> Result<Arc<Message>, Error> {
        if let Some(message) = self.0.get(&sequence) {
            return Ok(message.clone());
        }
        let message = Arc::new(message::message(heard, event)?);
        self.0.insert(sequence, message.clone());
        Ok(message)
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
