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
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod lines;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::guest::{Container, LogOptions, SystemStats};
use holdfast_model::node::{DesiredVm, StreamError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::hypervisor::{KeySource, View, stream_error};

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
    Data(u8, Bytes),
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
    _task: AbortOnDropHandle<()>,
}

impl Agent {
    /// Connects, now and whenever the connection is lost.
    pub fn open(peer: Peer) -> Self {
        let (commands, inbox) = mpsc::channel(64);
        let (connection, connected) = watch::channel(false);
        let task = channel::run(peer, commands.downgrade(), inbox, connection);
        Self { commands, connected, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// Waits until everything that the guest had said before its end was read.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut connected = self.connected.clone();
        async move { drop(connected.wait_for(|c| !c).await) }
    }

    /// A sender of questions, which outlives a borrow of this.
    pub fn line(&self) -> Line {
        Line { commands: self.commands.clone() }
    }
}

/// Where questions to a guest go in.
pub struct Line {
    commands: mpsc::Sender<Command>,
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

    pub async fn logs(&self, container: String, options: LogOptions) -> Result<LogStream, StreamError> {
        let (opened, answer) = oneshot::channel();
        self.ask(Command::LogsOpen { container, options, opened }, answer).await
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
pub struct LogStream {
    id: u64,
    /// Holds no more than the guest has credit for.
    pieces: mpsc::UnboundedReceiver<Piece>,
    commands: mpsc::Sender<Command>,
    ended: bool,
}

impl LogStream {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(u8, Bytes)>, StreamError> {
        match self.pieces.recv().await {
            Some(Piece::Data(channel, data)) => Ok(Some((channel, data))),
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

    /// These bytes have been passed on; the guest may send as many more.
    pub async fn passed_on(&self, bytes: usize) {
        let _ = self.commands.send(Command::LogsCredit { id: self.id, bytes: bytes as u64 }).await;
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.commands.try_send(Command::LogsClose { id: self.id });
        }
    }
}

#[cfg(test)]
mod tests;
