//! The task behind [`Agent`](super::Agent): one loop that owns the socket, and forgets everything when it closes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use holdfast_model::guest::{
    BootError, CAN_ENTRIES, CAN_STATS, Config, FromGuest, GuestState, Keys, LogOptions, MAX_LINE, ToGuest, hostname,
};
use holdfast_model::node::{DesiredVm, STREAM_WINDOW, StreamError};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use super::lines::Lines;
use super::words::{self, MESSAGE, WORD, cut};
use super::{AGENT_OLD, Command, LogStream, Peer, Piece, Question};
use crate::clock;
use crate::hypervisor::qemu::argv::AGENT_SOCKET;
use crate::hypervisor::qemu::qmp;
use crate::hypervisor::{KeyError, stream_error};
use crate::record::GuestView;

/// Lines to the guest that may wait, and their bytes; more are dropped, because a guest that does not read needs no answers.
const OUTGOING: usize = 64;
const OUTGOING_BYTES: usize = 2 * MAX_LINE;
/// Questions and log streams that may be open at once.
const MAX_OPEN: usize = 256;
/// How often a Hello is repeated until it is acknowledged.
const HELLO: Duration = Duration::from_secs(60);
/// Least time between two changes that the guest reports of itself.
const STATE_SPACING: Duration = Duration::from_millis(50);
/// Least time between two requests for keys.
const KEYS_SPACING: Duration = Duration::from_secs(1);
/// When the guest should ask again for keys that the server cannot give now, in seconds.
const KEYS_RETRY_S: u32 = 3;

/// Connects again and again, until the task is dropped.
pub(super) async fn run(
    peer: Peer,
    commands: mpsc::WeakSender<Command>,
    mut inbox: mpsc::Receiver<Command>,
    connected: watch::Sender<bool>,
) {
    let mut shutdown = None;
    let mut pause = Duration::from_millis(5);
    loop {
        match qmp::connect(&peer.folder, AGENT_SOCKET).await {
            Ok(stream) => {
                connected.send_replace(true);
                let (read, write) = stream.into_split();
                let mut channel = Channel::new(&peer, commands.clone(), write, shutdown);
                let ended = channel.talk(read, &mut inbox).await;
                shutdown = channel.shutdown;
                connected.send_replace(false);
                debug!(vm = %peer.uuid, ?ended, "the agent channel closed");
                if ended == Ended::Dropped {
                    return;
                }
            }
            Err(error) => debug!(vm = %peer.uuid, %error, "the agent socket is not there"),
        }
        let again = Instant::now() + pause;
        pause = (pause * 2).min(Duration::from_secs(1));
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Shutdown { grace_s }) => shutdown = Some(grace_s),
                    Some(Command::Stay) => shutdown = None,
                    Some(command) => refuse(command),
                    None => return,
                },
                () = sleep_until(again) => break,
            }
        }
    }
}

fn refuse(command: Command) {
    let silent = || stream_error("agent_silent", "the guest agent has not answered yet");
    match command {
        Command::Ask(question) => question.refuse(silent()),
        Command::LogsOpen { opened, .. } => drop(opened.send(Err(silent()))),
        Command::Shutdown { .. } | Command::Stay | Command::LogsCredit { .. } | Command::LogsClose { .. } => {}
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The socket closed.
    Closed,
    /// Nobody holds the agent any more.
    Dropped,
}

struct LogSide {
    pieces: mpsc::UnboundedSender<Piece>,
    /// Bytes that the guest may still send.
    credit: u64,
}

struct Channel<'a> {
    peer: &'a Peer,
    commands: mpsc::WeakSender<Command>,
    session: String,
    talking: bool,
    outgoing: mpsc::Sender<Zeroizing<Vec<u8>>>,
    /// Bytes that wait in `outgoing`.
    waiting: Arc<AtomicUsize>,
    _writer: AbortOnDropHandle<()>,
    /// Grace of a power-off that the guest was not told of in this session.
    shutdown: Option<u32>,
    next_id: u64,
    questions: HashMap<u64, Question>,
    logs: HashMap<u64, LogSide>,
    /// The newest state that was not taken in yet, and when it may be.
    state: Option<GuestState>,
    state_due: Instant,
    /// What the guest should run, and the newest generation of it that went to the guest or that the guest has.
    wanted: watch::Receiver<Arc<DesiredVm>>,
    handed: u64,
    /// Its agent can say how the machine is.
    can_stats: bool,
    /// Its agent sends logs as entries where it is asked to.
    can_entries: bool,
    /// The guest has a configuration; one without any asks for it itself.
    configured: bool,
    /// Generation that it asked for and was given.
    asked: u64,
    keys_due: Instant,
    fetching: Option<AbortOnDropHandle<Result<Keys, KeyError>>>,
}

impl<'a> Channel<'a> {
    fn new(peer: &'a Peer, commands: mpsc::WeakSender<Command>, write: OwnedWriteHalf, shutdown: Option<u32>) -> Self {
        let (outgoing, lines) = mpsc::channel(OUTGOING);
        let now = Instant::now();
        let waiting = Arc::<AtomicUsize>::default();
        let writer = tokio::spawn(write_lines(write, lines, waiting.clone()));
        Self {
            peer,
            commands,
            session: Uuid::new_v4().simple().to_string(),
            talking: false,
            outgoing,
            waiting,
            _writer: AbortOnDropHandle::new(writer),
            shutdown,
            next_id: 1,
            questions: HashMap::new(),
            logs: HashMap::new(),
            state: None,
            state_due: now,
            wanted: peer.wanted.clone(),
            handed: 0,
            can_stats: false,
            can_entries: false,
            configured: false,
            asked: 0,
            keys_due: now,
            fetching: None,
        }
    }

    async fn talk(&mut self, read: OwnedReadHalf, inbox: &mut mpsc::Receiver<Command>) -> Ended {
        let mut lines = Lines::new(read);
        // Ends whatever a host before us was in the middle of writing.
        self.push(Zeroizing::new(b"\n".to_vec()));
        self.hello();
        let mut hello_due = Instant::now() + HELLO;
        loop {
            tokio::select! {
                line = lines.next() => match line {
                    Ok(Some(line)) => self.hear(&line),
                    Ok(None) | Err(_) => {
                        self.take_state();
                        return Ended::Closed;
                    }
                },
                command = inbox.recv() => match command {
                    Some(command) if self.talking => self.command(command),
                    Some(Command::Shutdown { grace_s }) => self.shutdown = Some(grace_s),
                    Some(Command::Stay) => self.shutdown = None,
                    Some(command) => refuse(command),
                    None => return Ended::Dropped,
                },
                () = sleep_until(hello_due), if !self.talking => {
                    self.hello();
                    hello_due = Instant::now() + HELLO;
                }
                () = sleep_until(self.state_due), if self.state.is_some() => self.take_state(),
                Ok(()) = self.wanted.changed() => self.hand_newer(),
                keys = fetched(&mut self.fetching) => self.keys(keys),
            }
        }
    }

    fn hello(&self) {
        self.say(&ToGuest::Hello { session: self.session.clone() });
    }

    /// False when it is dropped.
    fn say(&self, message: &ToGuest) -> bool {
        match serde_json::to_vec(message) {
            Ok(mut line) => {
                line.push(b'\n');
                self.push(Zeroizing::new(line))
            }
            Err(error) => {
                warn!(vm = %self.peer.uuid, %error, "a line to the guest that cannot be written");
                false
            }
        }
    }

    fn push(&self, line: Zeroizing<Vec<u8>>) -> bool {
        let size = line.len();
        if size > MAX_LINE {
            warn!(vm = %self.peer.uuid, bytes = size, "a line to the guest is too long and was dropped");
            return false;
        }
        // Only this task adds to it, so what fits now fits.
        let fits = self.waiting.load(Ordering::Acquire) + size <= OUTGOING_BYTES;
        self.waiting.fetch_add(size, Ordering::AcqRel);
        if fits && self.outgoing.try_send(line).is_ok() {
            return true;
        }
        self.waiting.fetch_sub(size, Ordering::AcqRel);
        debug!(vm = %self.peer.uuid, "the guest does not read; a line to it was dropped");
        false
    }

    fn hear(&mut self, line: &[u8]) {
        if line.is_empty() {
            return;
        }
        let Ok(message) = serde_json::from_slice::<FromGuest>(line) else {
            debug!(vm = %self.peer.uuid, bytes = line.len(), "a line of the guest that means nothing was dropped");
            return;
        };
        match message {
            FromGuest::HelloAck { session, state } if session == self.session => {
                if !self.talking {
                    info!(vm = %self.peer.uuid, progress = %cut(state.boot_progress.clone(), WORD), "the guest agent answered");
                }
                self.talking = true;
                let wanted = self.wanted.borrow().generation;
                (self.configured, self.handed) = (state.app_revision > 0, state.app_revision.min(wanted));
                self.state = Some(state);
                self.take_state();
                self.hand_newer();
                if let Some(grace_s) = self.shutdown.take() {
                    self.say(&ToGuest::Shutdown { grace_s });
                }
            }
            FromGuest::HelloAck { .. } => {}
            _ if !self.talking => {}
            FromGuest::NeedConfig => {
                self.hand_config();
                self.asked = self.handed;
            }
            FromGuest::NeedKeys => self.need_keys(),
            FromGuest::State(state) => {
                self.state = Some(state);
                if Instant::now() >= self.state_due {
                    self.take_state();
                }
            }
            FromGuest::Containers { id, containers, error } => {
                if let Some(Question::Containers(reply)) = self.questions.remove(&id) {
                    let failed = error.map(|e| stream_error("internal", cut(e, MESSAGE)));
                    let _ = reply.send(failed.map_or_else(|| Ok(words::containers(containers)), Err));
                }
            }
            FromGuest::Stats { id, stats, error } => {
                if let Some(Question::Stats(reply)) = self.questions.remove(&id) {
                    let why = || stream_error("internal", cut(error.unwrap_or_default(), MESSAGE));
                    let _ = reply.send(stats.map(|stats| Box::new(words::stats(*stats))).ok_or_else(why));
                }
            }
            FromGuest::Log { id, channel, data, at } => self.log(id, channel, &data, at),
            FromGuest::LogEnd { id, error } => self.log_end(id, error),
        }
    }

    fn take_state(&mut self) {
        let Some(state) = self.state.take() else { return };
        self.state_due = Instant::now() + STATE_SPACING;
        let can = |what: &str| state.can.iter().any(|word| word == what);
        (self.can_stats, self.can_entries) = (can(CAN_STATS), can(CAN_ENTRIES));
        let wanted = self.wanted.borrow().generation;
        let app_revision = match state.app_revision {
            // An agent of an older image does not speak of it. It runs what it was given at its boot, and nothing newer.
            0 => self.asked.max(self.peer.view.borrow().guest.app_revision),
            revision => revision,
        };
        let guest = GuestView {
            agent: true,
            boot_progress: Some(cut(state.boot_progress, WORD)),
            boot_error: state
                .boot_error
                .map(|e| BootError { step: cut(e.step, WORD), message: cut(e.message, MESSAGE) }),
            // It cannot have applied what it was never given.
            app_revision: app_revision.min(wanted),
            shutdown_progress: state.shutdown_progress.map(|p| cut(p, WORD)),
        };
        self.peer.view.send_if_modified(|view| {
            let news = view.guest != guest;
            view.guest = guest;
            news
        });
        self.hand_newer();
    }

    /// Gives a guest that runs an app the newer configuration, unasked.
    fn hand_newer(&mut self) {
        if self.talking && self.configured && self.handed < self.wanted.borrow().generation {
            self.hand_config();
        }
    }

    fn hand_config(&mut self) {
        let desired = self.wanted.borrow_and_update().clone();
        // Not even made while a guest that does not read asks again and again.
        let room = self.waiting.load(Ordering::Acquire) < MAX_LINE;
        let Some(spec) = desired.spec.as_ref().filter(|_| room) else { return };
        let said = self.say(&ToGuest::Config(Box::new(Config {
            vm_uuid: spec.uuid.to_string(),
            app_id: spec.app_id.clone(),
            instance_id: spec.instance_id.clone(),
            hostname: hostname(&spec.name),
            app_compose: spec.app_compose.clone(),
            encrypted_env: spec.encrypted_env.clone(),
            user_config: spec.user_config.clone(),
            now: clock::now(),
            revision: desired.generation,
        })));
        if said {
            (self.configured, self.handed) = (true, desired.generation);
        }
    }

    fn need_keys(&mut self) {
        let now = Instant::now();
        if self.fetching.is_some() || self.wanted.borrow().spec.is_none() {
            return;
        }
        let (wait, keys, uuid) = (self.keys_due.saturating_duration_since(now), self.peer.keys.clone(), self.peer.uuid);
        self.keys_due = now + wait + KEYS_SPACING;
        self.fetching = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            keys.keys(uuid).await
        })));
    }

    fn keys(&mut self, keys: Result<Keys, KeyError>) {
        self.fetching = None;
        match keys {
            Ok(keys) => {
                let mut message = ToGuest::Keys(keys);
                self.say(&message);
                if let ToGuest::Keys(keys) = &mut message {
                    keys.env_key.zeroize();
                    keys.disk_key.zeroize();
                }
            }
            Err(error) => {
                warn!(vm = %self.peer.uuid, %error, "no keys for the guest");
                let retry_s = matches!(error, KeyError::Unreachable).then_some(KEYS_RETRY_S);
                self.say(&ToGuest::Refused { what: "keys".to_owned(), reason: error.to_string(), retry_s });
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Shutdown { grace_s } => drop(self.say(&ToGuest::Shutdown { grace_s })),
            // Too late: it was said.
            Command::Stay => {}
            Command::Ask(question) => self.ask(question),
            Command::LogsOpen { container, options, entries, opened } => {
                self.open_log(container, options, entries, opened);
            }
            Command::LogsCredit { id, bytes } => {
                if let Some(log) = self.logs.get_mut(&id) {
                    log.credit = log.credit.saturating_add(bytes);
                    self.say(&ToGuest::LogsCredit { id, bytes });
                }
            }
            Command::LogsClose { id } => self.close_log(id),
        }
    }

    fn ask(&mut self, question: Question) {
        self.questions.retain(|_, question| !question.is_closed());
        if self.questions.len() >= MAX_OPEN {
            return;
        }
        let id = self.id();
        let message = match &question {
            Question::Containers(_) => ToGuest::Containers { id },
            Question::Stats(_) if self.can_stats => ToGuest::Stats { id },
            Question::Stats(_) => {
                let why = "the guest agent is of an older image and cannot say how the machine is";
                return question.refuse(stream_error(AGENT_OLD, why));
            }
        };
        self.questions.insert(id, question);
        self.say(&message);
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn open_log(
        &mut self,
        container: String,
        options: LogOptions,
        entries: bool,
        opened: oneshot::Sender<Result<LogStream, StreamError>>,
    ) {
        if entries && !self.can_entries {
            let why = "the guest agent is of an older image and sends no entries";
            let _ = opened.send(Err(stream_error(AGENT_OLD, why)));
            return;
        }
        let (pieces, receiver) = mpsc::unbounded_channel();
        let commands = self.commands.upgrade();
        let Some(commands) = commands.filter(|_| self.logs.len() < MAX_OPEN) else {
            let _ = opened.send(Err(stream_error("internal", "too many logs of this VM are open")));
            return;
        };
        let id = self.id();
        if !self.say(&ToGuest::LogsOpen { id, container, options, entries }) {
            let _ = opened.send(Err(stream_error("agent_silent", "the guest agent does not read")));
            return;
        }
        self.logs.insert(id, LogSide { pieces, credit: STREAM_WINDOW });
        let _ = opened.send(Ok(LogStream { id, pieces: receiver, commands, owed: 0, ended: false }));
    }

    fn log(&mut self, id: u64, channel: u8, data: &str, at: Option<i64>) {
        let Some(log) = self.logs.get_mut(&id) else { return };
        let Ok(data) = BASE64.decode(data) else { return };
        let size = data.len() as u64;
        if size == 0 {
            return;
        }
        if size > log.credit {
            warn!(vm = %self.peer.uuid, "the guest sent more of a log than it may; closing it");
            let error = stream_error("internal", "the guest agent sent too much");
            let _ = log.pieces.send(Piece::End(Some(error)));
            return self.close_log(id);
        }
        log.credit -= size;
        let channel = if channel == 2 { 2 } else { 1 };
        if log.pieces.send(Piece::Data(channel, Bytes::from(data), at)).is_err() {
            self.close_log(id);
        }
    }

    fn log_end(&mut self, id: u64, error: Option<StreamError>) {
        if let Some(log) = self.logs.remove(&id) {
            let error = error.map(|e| stream_error(known_code(&e.code), cut(e.message, MESSAGE)));
            let _ = log.pieces.send(Piece::End(error));
        }
    }

    fn close_log(&mut self, id: u64) {
        if self.logs.remove(&id).is_some() {
            self.say(&ToGuest::LogsClose { id });
        }
    }
}

/// The keys when they have come; never, when none are awaited.
async fn fetched(fetching: &mut Option<AbortOnDropHandle<Result<Keys, KeyError>>>) -> Result<Keys, KeyError> {
    match fetching {
        Some(task) => task.await.unwrap_or(Err(KeyError::Unreachable)),
        None => std::future::pending().await,
    }
}

async fn write_lines(
    mut write: OwnedWriteHalf,
    mut lines: mpsc::Receiver<Zeroizing<Vec<u8>>>,
    waiting: Arc<AtomicUsize>,
) {
    while let Some(line) = lines.recv().await {
        if write.write_all(&line).await.is_err() {
            return;
        }
        waiting.fetch_sub(line.len(), Ordering::AcqRel);
    }
}

/// A guest may only use the protocol's own words.
fn known_code(code: &str) -> &'static str {
    match code {
        "no_such_container" => "no_such_container",
        "not_running" => "not_running",
        _ => "internal",
    }
}
