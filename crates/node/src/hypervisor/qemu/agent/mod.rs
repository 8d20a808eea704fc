//! The node's end of the channel to one guest agent.
//!
//! The one rule: the guest may be hostile. Its lines are bounded, its words are cut to a length, its reports are taken at
//! most twenty times a second, its logs only within the credit it was given; what does not fit is dropped, and costs only
//! the guest itself anything. Keys pass through here once, from the server to the socket, and are wiped.
//!
//! ```text
//!   connecting --socket--> greeted (Hello sent) --HelloAck with our session--> talking
//!        ^                      |  every line before is ignored                   |
//!        +----------------------+-------------- socket closed --------------------+
//! ```

mod channel;
mod feed;
mod follow;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod lines;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::guest::{Container, LogOptions, SystemStats};
use holdfast_model::node::{DesiredVm, STREAM_WINDOW, StreamError};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use self::feed::{Entry, Feeds};
use crate::hypervisor::{KeySource, LogSink, View, stream_error};

/// The word for what the agent of an older image does not know.
const AGENT_OLD: &str = "agent_old";
/// How long a guest may take to answer a question.
const ANSWER: Duration = Duration::from_secs(15);

/// What the channel needs to know of its VM.
pub struct Peer {
    pub uuid: Uuid,
    /// What the guest should run, as it is by now. Without a spec it is only waiting for its end, and gets nothing more.
    pub wanted: watch::Receiver<Arc<DesiredVm>>,
    pub folder: PathBuf,
    pub keys: Arc<dyn KeySource>,
    pub view: watch::Sender<View>,
}

/// A part of a container's log.
#[derive(Debug)]
enum Piece {
    /// Channel, bytes, and the time they were written at where entries were asked for.
    Data(u8, Bytes, Option<i64>),
    End(Option<StreamError>),
}

/// Where an answer is awaited.
type Reply<T> = oneshot::Sender<Result<T, StreamError>>;

enum Question {
    Containers(Reply<Vec<Container>>),
    Stats(Reply<Box<SystemStats>>),
}

impl Question {
    /// Nobody waits for the answer any more.
    fn is_closed(&self) -> bool {
        match self {
            Self::Containers(reply) => reply.is_closed(),
            Self::Stats(reply) => reply.is_closed(),
        }
    }

    fn refuse(self, error: StreamError) {
        match self {
            Self::Containers(reply) => drop(reply.send(Err(error))),
            Self::Stats(reply) => drop(reply.send(Err(error))),
        }
    }
}

enum Command {
    Shutdown {
        grace_s: u32,
    },
    /// Ask for no power-off, if that has not been done yet.
    Stay,
    Ask(Question),
    LogsOpen {
        container: String,
        options: LogOptions,
        /// Each piece is to be an entry, with its time.
        entries: bool,
        opened: oneshot::Sender<Result<LogStream, StreamError>>,
    },
    LogsCredit {
        id: u64,
        bytes: u64,
    },
    LogsClose {
        id: u64,
    },
}

/// The channel to one guest. Dropping it closes the socket and says nothing to the guest.
pub struct Agent {
    commands: mpsc::Sender<Command>,
    connected: watch::Receiver<bool>,
    feeds: Arc<Feeds>,
    _task: AbortOnDropHandle<()>,
}

impl Agent {
    /// Connects, now and whenever the connection is lost.
    pub fn open(peer: Peer) -> Self {
        let (commands, inbox) = mpsc::channel(64);
        let (connection, connected) = watch::channel(false);
        let task = channel::run(peer, commands.downgrade(), inbox, connection);
        Self { commands, connected, feeds: Arc::default(), _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// Waits until everything that the guest had said before its end was read.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut connected = self.connected.clone();
        async move { drop(connected.wait_for(|c| !c).await) }
    }

    /// A sender of questions, which outlives a borrow of this.
    pub fn line(&self) -> Line {
        Line { commands: self.commands.clone(), feeds: self.feeds.clone() }
    }
}

/// Where questions to a guest go in.
#[derive(Clone)]
pub struct Line {
    commands: mpsc::Sender<Command>,
    feeds: Arc<Feeds>,
}

impl Line {
    /// Asks for a power-off; passed on once the guest listens.
    pub async fn shutdown(&self, grace_s: u32) {
        let _ = self.commands.send(Command::Shutdown { grace_s }).await;
    }

    /// Forgets a power-off that the guest was not asked for yet.
    pub async fn shutdown_withdraw(&self) {
        let _ = self.commands.send(Command::Stay).await;
    }

    pub async fn containers(&self) -> Result<Vec<Container>, StreamError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Ask(Question::Containers(reply)), answer).await
    }

    pub async fn stats(&self) -> Result<Box<SystemStats>, StreamError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Ask(Question::Stats(reply)), answer).await
    }

    /// Writes a container's log to `sink` until its end, or until nobody listens. Those who follow the same one share a
    /// stream of the guest's.
    pub async fn logs(
        &self,
        container: String,
        options: LogOptions,
        sink: &mut dyn LogSink,
    ) -> Result<(), StreamError> {
        if follow::is_shared(&options) {
            match follow::follow(self, &container, &options, sink).await {
                // Of an older image: it has nothing that could be shared.
                Err(error) if error.code == AGENT_OLD => {}
                result => return result,
            }
        }
        let mut log = self.open_logs(container, options, false).await?;
        while let Some((channel, data, _)) = log.next().await? {
            let size = data.len();
            if !sink.write(channel, data).await {
                return Ok(());
            }
            log.passed_on(size).await;
        }
        Ok(())
    }

    /// A log entry by entry; refused as [`AGENT_OLD`] by a guest that does not know of entries.
    async fn entries(&self, container: String, options: LogOptions) -> Result<LogStream, StreamError> {
        self.open_logs(container, options, true).await
    }

    async fn open_logs(&self, container: String, options: LogOptions, entries: bool) -> Result<LogStream, StreamError> {
        let (opened, answer) = oneshot::channel();
        self.ask(Command::LogsOpen { container, options, entries, opened }, answer).await
    }

    async fn ask<T>(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<T, StreamError>>,
    ) -> Result<T, StreamError> {
        let silent = || stream_error("agent_silent", "the guest agent does not answer");
        self.commands.send(command).await.map_err(|_| silent())?;
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(result)) => result,
            _ => Err(silent()),
        }
    }
}

/// A container's log on its way. Dropping it tells the guest to stop.
#[derive(Debug)]
struct LogStream {
    id: u64,
    /// Holds no more than the guest has credit for.
    pieces: mpsc::UnboundedReceiver<Piece>,
    commands: mpsc::Sender<Command>,
    /// Bytes that were passed on and that the guest has no new credit for yet.
    owed: u64,
    ended: bool,
}

/// Credit is given in such pieces: a guest that has to read a line for each of its own would be talked to death.
const CREDIT: u64 = STREAM_WINDOW / 4;

impl LogStream {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<(u8, Bytes, Option<i64>)>, StreamError> {
        match self.pieces.recv().await {
            Some(Piece::Data(channel, data, at)) => Ok(Some((channel, data, at))),
            Some(Piece::End(error)) => {
                self.ended = true;
                error.map_or(Ok(None), Err)
            }
            None => {
                self.ended = true;
                Err(stream_error("agent_silent", "the connection to the guest agent was lost"))
            }
        }
    }

    /// The next entry, of a stream that was opened for entries.
    async fn next_entry(&mut self) -> Result<Option<Entry>, StreamError> {
        let piece = self.next().await?;
        Ok(piece.map(|(channel, data, at)| Entry { at: at.unwrap_or_default(), channel, data }))
    }

    /// These bytes have been passed on; the guest may send as many more.
    async fn passed_on(&mut self, bytes: usize) {
        self.owed += bytes as u64;
        if self.owed >= CREDIT {
            let bytes = std::mem::take(&mut self.owed);
            let _ = self.commands.send(Command::LogsCredit { id: self.id, bytes }).await;
        }
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let full = self.commands.try_send(Command::LogsClose { id: self.id });
        // Otherwise the guest would hold a task for it as long as it runs.
        if let (Err(TrySendError::Full(close)), Ok(runtime)) = (full, Handle::try_current()) {
            let commands = self.commands.clone();
            runtime.spawn(async move { drop(commands.send(close).await) });
        }
    }
}

#[cfg(test)]
mod follow_tests;
#[cfg(test)]
mod tests;
