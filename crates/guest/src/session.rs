//! What guest and host have told each other: the guest's half of the protocol, without the port.
//!
//! The one rule: level, not edge. What the host must know (state, what is still needed) is kept as it is now and said again
//! after each `Hello`; only answers and log data are queued, and that queue is bounded in bytes, not by the host's good will.
//!
//! ```text
//! port thread:  received line -> Agent::receive -> Task for a thread of its own, or nothing
//!               Agent::next   -> next line to send (state first, then what is needed, then the queue)
//! boot thread:  Agent::progress, fail, need_config, need_keys; then Agent::newer_config, begin_revision, for ever
//! log threads:  Agent::send_log (blocks on credit and on the queue's bound, ends when the stream is gone)
//! ```

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_model::guest::{
    BootError, BootProgress, CAN_ENTRIES, CAN_STATS, Config, FromGuest, GuestState, Keys, LogOptions, ToGuest,
};
use holdfast_model::node::{STREAM_WINDOW, StreamError};
use rustix::event::EventfdFlags;
use rustix::time::ClockId;

use crate::logs::Stop;

mod answers;

/// Log data and answers waiting for the port, in bytes.
const QUEUE_BYTES: usize = 512 * 1024;
/// Log data of one line of the protocol.
const LOG_CHUNK: usize = 32 * 1024;
/// Streams, container lists and looks at the machine that run at the same time.
const MAX_TASKS: usize = 16;

/// What the boot waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Config,
    Keys,
}

/// Work that the port thread hands to a thread of its own.
pub enum Task {
    Containers { id: u64 },
    Stats { id: u64 },
    Logs { id: u64, container: String, options: LogOptions, entries: bool, stop: Arc<Stop> },
    Shutdown { grace: Duration },
}

struct Stream {
    credit: u64,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Inner {
    session: Option<String>,
    ack_due: bool,
    state_due: bool,
    need_due: bool,
    /// The port has taken a message and has not asked for another one since, so that one may not be written yet.
    sending: bool,
    state: GuestState,
    need: Option<Need>,
    /// The newest configuration that the boot thread has not taken yet.
    config: Option<Config>,
    /// The one that was taken last: its app runs, or is being started.
    taken: Option<Config>,
    /// Revision of the newest configuration that was received; `None` before the first.
    newest: Option<u64>,
    keys: Option<Result<Keys, (String, Option<u32>)>>,
    queue: VecDeque<FromGuest>,
    queued_bytes: usize,
    streams: HashMap<u64, Stream>,
    tasks: usize,
    shutting_down: bool,
}

/// Shared by all threads of the agent.
pub struct Agent {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Rings when there is something to send; absent when the kernel gave none, and the port thread then polls.
    bell: Option<OwnedFd>,
}

impl Agent {
    pub fn new(boot_id: String) -> Self {
        let agent_version = holdfast_model::VERSION.to_owned();
        let can = vec![CAN_STATS.to_owned(), CAN_ENTRIES.to_owned()];
        let state = GuestState { agent_version, boot_id, can, ..GuestState::default() };
        let bell = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).ok();
        let agent = Self { inner: Mutex::new(Inner { state, ..Inner::default() }), changed: Condvar::new(), bell };
        agent.progress(BootProgress::Booting);
        agent
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }

    fn ring(&self) {
        self.changed.notify_all();
        if let Some(bell) = &self.bell {
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }

    // ---- the boot's side

    pub fn progress(&self, reached: BootProgress) {
        self.reached(reached, |_| ());
    }

    fn reached(&self, reached: BootProgress, before: impl FnOnce(&mut GuestState)) {
        let millis = uptime_millis();
        self.change(|state| {
            before(state);
            state.boot_progress = reached.as_str().to_owned();
            state.timeline.push((reached.as_str().to_owned(), millis));
        });
        crate::init::console(&format!("{reached} at {millis} ms", reached = reached.as_str()));
    }

    /// The word that the boot is at now.
    pub fn step(&self) -> String {
        self.lock().state.boot_progress.clone()
    }

    /// Shown to the app's owner; `None` takes an error back.
    pub fn set_error(&self, error: Option<BootError>) {
        let mut inner = self.lock();
        if inner.state.boot_error != error {
            inner.state.boot_error = error;
            inner.state_due = true;
            drop(inner);
            self.ring();
        }
    }

    pub fn shutdown_progress(&self, word: &str) {
        self.change(|state| state.shutdown_progress = Some(word.to_owned()));
        crate::init::console(word);
    }

    /// Begins a shutdown; false when one runs already.
    pub fn begin_shutdown(&self) -> bool {
        !std::mem::replace(&mut self.lock().shutting_down, true)
    }

    pub fn shutting_down(&self) -> bool {
        self.lock().shutting_down
    }

    /// Asks the host until it has answered.
    pub fn need_config(&self) -> Config {
        let mut inner = self.ask(Need::Config);
        loop {
            if let Some(config) = inner.take_config() {
                inner.state.app_revision = config.revision;
                return config;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a configuration that is newer than the last one.
    pub fn newer_config(&self) -> Config {
        let mut inner = self.lock();
        loop {
            if let Some(config) = inner.take_config() {
                return config;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What is being done is not wanted any more: a newer configuration waits, or the VM goes down.
    pub fn superseded(&self) -> bool {
        let inner = self.lock();
        inner.config.is_some() || inner.shutting_down
    }

    /// From now on progress and error speak of `revision`, whose app is as the last one's.
    pub fn acknowledge(&self, revision: u64) {
        self.change(|state| state.app_revision = revision);
    }

    /// From now on progress and error speak of `revision`, of which nothing has been reached yet. Said in one word with
    /// the first progress, so that nobody takes the end of the app before for the end of this one.
    pub fn begin_revision(&self, revision: u64, first: BootProgress) {
        self.reached(first, |state| {
            state.app_revision = revision;
            state.boot_error = None;
            state.timeline.clear();
        });
    }

    fn change(&self, change: impl FnOnce(&mut GuestState)) {
        let mut inner = self.lock();
        change(&mut inner.state);
        inner.state_due = true;
        drop(inner);
        self.ring();
    }

    /// The keys, or why they are refused and when to ask again.
    pub fn need_keys(&self) -> Result<Keys, (String, Option<u32>)> {
        let mut inner = self.ask(Need::Keys);
        loop {
            if let Some(answer) = inner.keys.take() {
                return answer;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn ask(&self, need: Need) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        inner.need = Some(need);
        inner.need_due = true;
        self.ring();
        inner
    }

    // ---- the port's side

    /// Takes one message of the host. Whatever does not fit the moment is ignored.
    pub fn receive(&self, message: ToGuest) -> Option<Task> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        match message {
            ToGuest::Hello { session } => {
                inner.forget_host();
                inner.session = Some(session.chars().take(128).collect());
                (inner.ack_due, inner.state_due, inner.need_due) = (true, false, true);
                self.changed.notify_all();
                return None;
            }
            _ if inner.session.is_none() => return None,
            ToGuest::Config(config) if inner.need == Some(Need::Config) => {
                inner.need = None;
                inner.newest = Some(config.revision);
                inner.config = Some(*config);
            }
            // Unasked: the newest counts.
            ToGuest::Config(config) if inner.newest.is_some_and(|newest| newest < config.revision) => {
                inner.newest = Some(config.revision);
                if inner.is_of_this_app(&config) {
                    inner.state.app_revision = config.revision;
                    inner.state_due = true;
                } else {
                    inner.config = Some(*config);
                }
            }
            ToGuest::Keys(keys) if inner.need == Some(Need::Keys) => {
                inner.need = None;
                inner.keys = Some(Ok(keys));
            }
            ToGuest::Refused { what, reason, retry_s } if inner.need == Some(Need::Keys) && what == "keys" => {
                inner.need = None;
                inner.keys = Some(Err((reason, retry_s)));
            }
            ToGuest::Config(_) | ToGuest::Keys(_) | ToGuest::Refused { .. } => {}
            ToGuest::Shutdown { grace_s } => {
                return Some(Task::Shutdown { grace: Duration::from_secs(grace_s.into()) });
            }
            ToGuest::Containers { id } => {
                if inner.begin_task() {
                    return Some(Task::Containers { id });
                }
                let error = Some("too many requests at once".to_owned());
                inner.push(FromGuest::Containers { id, containers: Vec::new(), error });
            }
            ToGuest::Stats { id } => {
                if inner.begin_task() {
                    return Some(Task::Stats { id });
                }
                inner.push(FromGuest::Stats { id, stats: None, error: Some("too many requests at once".to_owned()) });
            }
            ToGuest::LogsOpen { id, container, options, entries } => {
                if inner.streams.contains_key(&id) {
                    return None;
                }
                if inner.begin_task() {
                    let stop = Arc::new(Stop::default());
                    inner.streams.insert(id, Stream { credit: STREAM_WINDOW, stop: Arc::clone(&stop) });
                    return Some(Task::Logs { id, container, options, entries, stop });
                }
                let error = StreamError { code: "internal".to_owned(), message: "too many streams at once".to_owned() };
                inner.push(FromGuest::LogEnd { id, error: Some(error) });
            }
            ToGuest::LogsClose { id } => {
                if let Some(stream) = inner.streams.remove(&id) {
                    stream.stop.now();
                }
            }
            ToGuest::LogsCredit { id, bytes } => {
                if let Some(stream) = inner.streams.get_mut(&id) {
                    stream.credit = stream.credit.saturating_add(bytes);
                }
            }
        }
        self.changed.notify_all();
        None
    }

    /// The host is gone: nobody waits for what is queued.
    pub fn disconnected(&self) {
        let mut inner = self.lock();
        inner.forget_host();
        self.changed.notify_all();
    }

    /// What to say next. To ask means that what was said before is written.
    pub fn next(&self) -> Option<FromGuest> {
        let mut inner = self.lock();
        let message = inner.next();
        inner.sending = message.is_some();
        drop(inner);
        self.changed.notify_all();
        message
    }

    /// Waits until the host has been told everything, but no longer than `limit`.
    pub fn flush(&self, limit: Duration) {
        let inner = self.lock();
        drop(self.changed.wait_timeout_while(inner, limit, |inner| inner.owes_the_host()));
    }
}

impl Inner {
    /// Whether there is a host that was not told everything yet.
    fn owes_the_host(&self) -> bool {
        self.session.is_some() && (self.ack_due || self.state_due || self.sending || !self.queue.is_empty())
    }

    fn next(&mut self) -> Option<FromGuest> {
        let session = self.session.clone()?;
        if std::mem::take(&mut self.ack_due) {
            return Some(FromGuest::HelloAck { session, state: self.state.clone() });
        }
        if std::mem::take(&mut self.state_due) {
            return Some(FromGuest::State(self.state.clone()));
        }
        if std::mem::take(&mut self.need_due) {
            match self.need {
                Some(Need::Config) => return Some(FromGuest::NeedConfig),
                Some(Need::Keys) => return Some(FromGuest::NeedKeys),
                None => {}
            }
        }
        let message = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(size(&message));
        Some(message)
    }

    fn take_config(&mut self) -> Option<Config> {
        let config = self.config.take()?;
        self.taken = Some(config.clone());
        Some(config)
    }

    /// Nothing has to be done for it: its app runs, or is being started, and has not failed.
    fn is_of_this_app(&self, config: &Config) -> bool {
        let same = self.taken.as_ref().is_some_and(|taken| taken.is_same_app(config));
        same && self.config.is_none() && self.state.boot_error.is_none()
    }

    fn forget_host(&mut self) {
        self.session = None;
        self.queue.clear();
        self.queued_bytes = 0;
        for (_, stream) in self.streams.drain() {
            stream.stop.now();
        }
    }

    fn begin_task(&mut self) -> bool {
        let free = self.tasks < MAX_TASKS;
        self.tasks += usize::from(free);
        free
    }

    fn push(&mut self, message: FromGuest) {
        // Nobody to hear it, or answers that a flood of questions asked for.
        if self.session.is_some() && self.queued_bytes < 2 * QUEUE_BYTES {
            self.queued_bytes += size(&message);
            self.queue.push_back(message);
        }
    }
}

/// About what a message weighs in memory.
fn size(message: &FromGuest) -> usize {
    match message {
        FromGuest::Log { data, .. } => data.len() + 64,
        FromGuest::Containers { containers, .. } => 64 + containers.len() * 512,
        FromGuest::Stats { .. } => 1024,
        _ => 256,
    }
}

/// Milliseconds since the kernel started.
pub fn uptime_millis() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or_default()
}

/// Waits `limit`, or less when there is no reason to any more; false in that case.
pub fn pause(limit: Duration, give_up: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if give_up() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50).min(end.saturating_duration_since(Instant::now())));
    }
    true
}

#[cfg(test)]
mod tests;
