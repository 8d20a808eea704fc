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
    BootError, BootProgress, CAN_STATS, Config, Container, FromGuest, GuestState, Keys, LogOptions, SystemStats,
    ToGuest,
};
use holdfast_model::node::{STREAM_WINDOW, StreamError};
use rustix::event::EventfdFlags;
use rustix::time::ClockId;

use crate::logs::Stop;

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
    Logs { id: u64, container: String, options: LogOptions, stop: Arc<Stop> },
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
        let can = vec![CAN_STATS.to_owned()];
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
            ToGuest::LogsOpen { id, container, options } => {
                if inner.streams.contains_key(&id) {
                    return None;
                }
                if inner.begin_task() {
                    let stop = Arc::new(Stop::default());
                    inner.streams.insert(id, Stream { credit: STREAM_WINDOW, stop: Arc::clone(&stop) });
                    return Some(Task::Logs { id, container, options, stop });
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

    // ---- the tasks' side

    pub fn answer_containers(&self, id: u64, result: Result<Vec<Container>, String>) {
        let (containers, error) = match result {
            Ok(containers) => (containers, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut inner = self.lock();
        inner.push(FromGuest::Containers { id, containers, error });
        inner.tasks -= 1;
        drop(inner);
        self.ring();
    }

    pub fn answer_stats(&self, id: u64, stats: SystemStats) {
        let mut inner = self.lock();
        inner.push(FromGuest::Stats { id, stats: Some(Box::new(stats)), error: None });
        inner.tasks -= 1;
        drop(inner);
        self.ring();
    }

    /// Queues log data as the host has room for it. False when nobody listens any more.
    pub fn send_log(&self, id: u64, stop: &Stop, channel: u8, mut data: &[u8]) -> bool {
        use base64::Engine as _;
        let mut inner = self.lock();
        while !data.is_empty() {
            if stop.stopped() {
                return false;
            }
            let full = inner.queued_bytes >= QUEUE_BYTES;
            let Some(stream) = inner.streams.get_mut(&id) else { return false };
            let credit = usize::try_from(stream.credit).unwrap_or(usize::MAX);
            let room = data.len().min(LOG_CHUNK).min(credit);
            if room == 0 || full {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            stream.credit -= room as u64;
            let (piece, rest) = data.split_at(room);
            let text = base64::engine::general_purpose::STANDARD.encode(piece);
            inner.push(FromGuest::Log { id, channel, data: text });
            data = rest;
            self.ring();
        }
        true
    }

    /// Ends a stream; said only if the host did not close it.
    pub fn end_log(&self, id: u64, stop: &Arc<Stop>, error: Option<StreamError>) {
        let mut inner = self.lock();
        inner.tasks -= 1;
        // After a new `Hello` the same id may be somebody else's stream.
        if inner.streams.get(&id).is_some_and(|s| Arc::ptr_eq(&s.stop, stop)) {
            inner.streams.remove(&id);
            inner.push(FromGuest::LogEnd { id, error });
        }
        drop(inner);
        self.ring();
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
mod tests {
    use super::*;

    fn said(agent: &Agent) -> Vec<FromGuest> {
        std::iter::from_fn(|| agent.next()).collect()
    }

    fn hello(agent: &Agent, session: &str) {
        assert!(agent.receive(ToGuest::Hello { session: session.to_owned() }).is_none());
    }

    fn keys() -> ToGuest {
        ToGuest::Keys(Keys { env_key: String::new(), disk_key: String::new() })
    }

    fn open(agent: &Agent, id: u64) -> Option<Arc<Stop>> {
        match agent.receive(ToGuest::LogsOpen { id, container: "c".to_owned(), options: LogOptions::default() }) {
            Some(Task::Logs { stop, .. }) => Some(stop),
            _ => None,
        }
    }

    #[test]
    fn nothing_is_said_before_hello_and_all_of_it_after_each() {
        let agent = Agent::new("boot".to_owned());
        agent.progress(BootProgress::RequestingAppKeys);
        drop(agent.ask(Need::Keys));
        assert!(said(&agent).is_empty());
        assert!(agent.receive(keys()).is_none());
        for session in ["a", "b"] {
            hello(&agent, session);
            let lines = said(&agent);
            assert!(
                matches!(&lines[0], FromGuest::HelloAck { session: s, state } if s == session && state.timeline.len() == 2)
            );
            assert_eq!(lines[1..], [FromGuest::NeedKeys]);
        }
        // What nobody asked for is not taken; what was asked for, once.
        agent.receive(ToGuest::Refused { what: "config".to_owned(), reason: String::new(), retry_s: None });
        assert!(agent.lock().keys.is_none());
        agent.receive(keys());
        assert!(matches!(agent.lock().keys.take(), Some(Ok(_))));
        agent.receive(keys());
        assert!(agent.lock().keys.is_none());
        hello(&agent, "c");
        assert_eq!(said(&agent).len(), 1);
    }

    #[test]
    fn a_message_that_was_taken_is_not_written_before_the_next_is_asked_for() {
        let agent = Agent::new("boot".to_owned());
        hello(&agent, "a");
        agent.shutdown_progress("powering off");
        let told = |agent: &Agent| {
            agent.flush(Duration::ZERO);
            !agent.lock().owes_the_host()
        };
        while agent.next().is_some() {
            assert!(!told(&agent));
        }
        assert!(told(&agent));
    }

    #[test]
    fn the_machine_is_looked_at_for_whoever_asks() {
        let agent = Agent::new("boot".to_owned());
        assert!(agent.receive(ToGuest::Stats { id: 1 }).is_none());
        hello(&agent, "a");
        assert!(matches!(&said(&agent)[0], FromGuest::HelloAck { state, .. } if state.can == [CAN_STATS]));
        assert!(matches!(agent.receive(ToGuest::Stats { id: 2 }), Some(Task::Stats { id: 2 })));
        agent.answer_stats(2, SystemStats { num_cpus: 3, ..SystemStats::default() });
        let [FromGuest::Stats { id: 2, stats: Some(stats), error: None }] = &said(&agent)[..] else {
            panic!("no answer")
        };
        assert_eq!((stats.num_cpus, agent.lock().tasks), (3, 0));
    }

    fn config(revision: u64, app: &str) -> ToGuest {
        ToGuest::Config(Box::new(Config {
            vm_uuid: String::new(),
            app_id: String::new(),
            instance_id: String::new(),
            hostname: String::new(),
            app_compose: app.to_owned(),
            encrypted_env: None,
            user_config: None,
            now: holdfast_model::Timestamp(0),
            revision,
        }))
    }

    #[test]
    fn the_newest_configuration_wins_and_the_same_app_is_left_alone() {
        let agent = Agent::new(String::new());
        hello(&agent, "a");
        // Before the first was asked for, none is taken.
        agent.receive(config(1, "one"));
        assert!(!agent.superseded());
        std::thread::scope(|scope| {
            let boot = scope.spawn(|| agent.need_config());
            while agent.lock().need.is_none() {
                std::thread::yield_now();
            }
            agent.receive(config(1, "one"));
            assert_eq!(boot.join().unwrap().revision, 1);
        });
        assert_eq!(agent.lock().state.app_revision, 1);
        agent.progress(BootProgress::Done);
        said(&agent);

        // The same app: acknowledged at once, while it stays done.
        agent.receive(config(2, "one"));
        assert!(!agent.superseded());
        let [FromGuest::State(state)] = &said(&agent)[..] else { panic!("no state") };
        assert_eq!((state.app_revision, state.boot_progress.as_str()), (2, "done"));

        // Of several others only the last; an older one, or the same again, never.
        for (revision, app) in [(3, "two"), (5, "four"), (4, "three"), (5, "else")] {
            agent.receive(config(revision, app));
        }
        assert!(agent.superseded());
        let newer = agent.newer_config();
        assert_eq!((newer.revision, newer.app_compose.as_str()), (5, "four"));
        assert!(!agent.superseded());
        assert_eq!(agent.lock().state.app_revision, 2);
        agent.begin_revision(5, BootProgress::StartingContainers);
        agent.set_error(Some(BootError { step: String::new(), message: String::new() }));

        // The same app after it failed is tried again.
        agent.receive(config(6, "four"));
        assert!(agent.superseded());
        agent.begin_revision(agent.newer_config().revision, BootProgress::PreLaunch);
        let state = agent.lock().state.clone();
        assert_eq!((state.app_revision, state.boot_error, state.timeline.len()), (6, None, 1));
    }

    #[test]
    fn a_stream_ends_at_its_credit_and_with_its_host() {
        let agent = Agent::new(String::new());
        hello(&agent, "a");
        said(&agent);
        let stop = open(&agent, 1).expect("a stream");
        let window = vec![b'x'; usize::try_from(STREAM_WINDOW).unwrap()];
        assert!(agent.send_log(1, &stop, 1, &window));
        assert_eq!(agent.lock().streams[&1].credit, 0);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| agent.send_log(1, &stop, 1, b"more"));
            hello(&agent, "b");
            assert!(!waiting.join().unwrap());
        });
        assert!(stop.stopped());
        agent.end_log(1, &stop, None);
        assert_eq!(said(&agent).len(), 1);
        assert_eq!(agent.lock().tasks, 0);
    }

    #[test]
    fn a_host_that_asks_without_end_gets_bounded_memory() {
        let agent = Agent::new(String::new());
        hello(&agent, "a");
        let begun = (0..100_000).filter(|id| open(&agent, *id).is_some()).count();
        assert_eq!(begun, MAX_TASKS);
        for id in 0..100_000 {
            assert!(agent.receive(ToGuest::Containers { id }).is_none());
            assert!(agent.receive(ToGuest::Stats { id }).is_none());
        }
        assert!(agent.lock().queued_bytes <= 2 * QUEUE_BYTES + 1024);
        // Credit without reading does not help either.
        agent.receive(ToGuest::LogsCredit { id: 0, bytes: u64::MAX });
        assert_eq!(agent.lock().streams[&0].credit, u64::MAX);
    }
}
