//! Streams to nodes: logs, container lists and looks at machines travel over the one socket that each node keeps open.
//!
//! The one rule: a slow reader costs its own stream only. A node sends no more data than the reader has given credit
//! for; one that does is cut off, so memory per stream is bounded by the window.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::error::{Code, Error};
use holdfast_model::guest::{Container, LogOptions, SystemStats};
use holdfast_model::node::{LogSource, STREAM_WINDOW, StreamError, StreamReply, StreamRequest};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A node answers a question within this time, or counts as silent.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Requests that may wait for a node's socket.
const QUEUE: usize = 64;

/// The sockets of all nodes that are connected to this process.
#[derive(Clone)]
pub struct Hub {
    nodes: Arc<Mutex<HashMap<i64, Arc<NodeSocket>>>>,
    /// Ids rise and 0 is none: a node takes an id that is not higher than the last for one that is in use.
    next_id: Arc<AtomicU64>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { nodes: Arc::default(), next_id: Arc::new(AtomicU64::new(1)) }
    }
}

struct NodeSocket {
    requests: mpsc::Sender<StreamRequest>,
    streams: Mutex<HashMap<u64, Stream>>,
    /// The node may not be connected any more.
    detached: CancellationToken,
}

enum Stream {
    Logs { chunks: mpsc::UnboundedSender<Result<Chunk, StreamError>>, outstanding: Arc<AtomicU64> },
    Question(oneshot::Sender<Result<Answer, StreamError>>),
}

/// What a node answers a question with.
enum Answer {
    Containers(Vec<Container>),
    Stats(Box<SystemStats>),
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// 1 stdout, 2 stderr.
    pub channel: u8,
    pub data: Bytes,
}

/// One node's socket as the surface that holds it sees it. Dropping it ends all of its streams.
pub struct Attachment {
    hub: Hub,
    node: i64,
    socket: Arc<NodeSocket>,
    requests: mpsc::Receiver<StreamRequest>,
}

impl Hub {
    /// A node connected. The newest socket of a node is the one in use.
    pub fn attach(&self, node: i64) -> Attachment {
        let (sender, requests) = mpsc::channel(QUEUE);
        let socket =
            Arc::new(NodeSocket { requests: sender, streams: Mutex::default(), detached: CancellationToken::new() });
        lock(&self.nodes).insert(node, socket.clone());
        Attachment { hub: self.clone(), node, socket, requests }
    }

    /// Ends a node's connection: whoever holds the socket is told that there is nothing more to send, and closes it.
    pub fn detach(&self, node: i64) {
        if let Some(socket) = lock(&self.nodes).remove(&node) {
            socket.detached.cancel();
        }
    }

    fn socket(&self, node: i64) -> Result<Arc<NodeSocket>, Error> {
        lock(&self.nodes)
            .get(&node)
            .cloned()
            .ok_or_else(|| Error::new(Code::NodeUnreachable, "The CVM's node is not connected."))
    }

    /// Containers of a VM, as its guest agent sees them now.
    pub async fn containers(&self, node: i64, vm: Uuid) -> Result<Vec<Container>, Error> {
        match self.ask(node, |id| StreamRequest::Containers { id, vm }).await? {
            Answer::Containers(containers) => Ok(containers),
            Answer::Stats(_) => Err(Error::internal("a node answered another question")),
        }
    }

    /// The machine of a VM, as its guest's kernel sees it now.
    pub async fn stats(&self, node: i64, vm: Uuid) -> Result<Box<SystemStats>, Error> {
        match self.ask(node, |id| StreamRequest::Stats { id, vm }).await? {
            Answer::Stats(stats) => Ok(stats),
            Answer::Containers(_) => Err(Error::internal("a node answered another question")),
        }
    }

    async fn ask(&self, node: i64, request: impl FnOnce(u64) -> StreamRequest) -> Result<Answer, Error> {
        let socket = self.socket(node)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&socket.streams).insert(id, Stream::Question(sender));
        let asked = tokio::time::timeout(ANSWER_TIME, async {
            socket.requests.send(request(id)).await.ok()?;
            answer.await.ok()
        })
        .await;
        lock(&socket.streams).remove(&id);
        match asked {
            Ok(Some(Ok(answer))) => Ok(answer),
            Ok(Some(Err(error))) => Err(stream_error(&error)),
            Ok(None) => Err(Error::new(Code::NodeUnreachable, "The CVM's node went away.")),
            Err(_) => Err(Error::new(Code::AgentSilent, "The CVM did not answer in time.")),
        }
    }

    /// A log of a VM. The stream ends when the log does, or never with `follow`; dropping it tells the node.
    pub async fn logs(&self, node: i64, vm: Uuid, source: LogSource, options: LogOptions) -> Result<LogStream, Error> {
        let socket = self.socket(node)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Unbounded in type; bounded by the credit that `outstanding` counts.
        let (sender, chunks) = mpsc::unbounded_channel();
        let outstanding = Arc::new(AtomicU64::new(0));
        lock(&socket.streams).insert(id, Stream::Logs { chunks: sender, outstanding: outstanding.clone() });
        let stream = LogStream { id, socket: socket.clone(), chunks, outstanding };
        let request = StreamRequest::Logs { id, vm, source, options };
        match tokio::time::timeout(ANSWER_TIME, socket.requests.send(request)).await {
            Ok(Ok(())) => Ok(stream),
            _ => Err(Error::new(Code::NodeUnreachable, "The CVM's node went away.")),
        }
    }
}

impl Attachment {
    /// The next request to send to the node; `None` when it is to be disconnected.
    pub async fn next_request(&mut self) -> Option<StreamRequest> {
        tokio::select! {
            request = self.requests.recv() => request,
            () = self.socket.detached.cancelled() => None,
        }
    }

    /// A text frame from the node.
    pub fn reply(&self, reply: StreamReply) {
        match reply {
            StreamReply::Containers { id, containers } => self.answer(id, Answer::Containers(containers)),
            StreamReply::Stats { id, stats } => self.answer(id, Answer::Stats(stats)),
            StreamReply::End { id, error } => match lock(&self.socket.streams).remove(&id) {
                Some(Stream::Logs { chunks, .. }) => {
                    if let Some(error) = error {
                        let _ = chunks.send(Err(error));
                    }
                }
                Some(Stream::Question(sender)) => {
                    let error = error.unwrap_or(StreamError { code: "internal".into(), message: "no answer".into() });
                    let _ = sender.send(Err(error));
                }
                None => {}
            },
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        if let Some(Stream::Question(sender)) = lock(&self.socket.streams).remove(&id) {
            // Nobody may be waiting any more.
            let _ = sender.send(Ok(answer));
        }
    }

    /// A binary frame from the node: 8 bytes id, 1 byte channel, data. False when it is none.
    pub fn data(&self, mut frame: Bytes) -> bool {
        if frame.len() < 9 {
            return false;
        }
        let head = frame.split_to(9);
        let mut id = [0; 8];
        id.copy_from_slice(&head[..8]);
        let id = u64::from_be_bytes(id);
        let mut streams = lock(&self.socket.streams);
        let Some(Stream::Logs { chunks, outstanding }) = streams.get(&id) else { return true };
        let held = outstanding.fetch_add(frame.len() as u64, Ordering::AcqRel) + frame.len() as u64;
        let sent = chunks.send(Ok(Chunk { channel: head[8], data: frame }));
        if held > 2 * STREAM_WINDOW || sent.is_err() {
            streams.remove(&id);
        }
        true
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut nodes = lock(&self.hub.nodes);
        if nodes.get(&self.node).is_some_and(|current| Arc::ptr_eq(current, &self.socket)) {
            nodes.remove(&self.node);
        }
        drop(nodes);
        lock(&self.socket.streams).clear();
    }
}

/// A log on its way to a reader.
pub struct LogStream {
    id: u64,
    socket: Arc<NodeSocket>,
    chunks: mpsc::UnboundedReceiver<Result<Chunk, StreamError>>,
    outstanding: Arc<AtomicU64>,
}

impl LogStream {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Chunk, Error>> {
        match self.chunks.recv().await? {
            Ok(chunk) => {
                let bytes = chunk.data.len() as u64;
                self.outstanding.fetch_sub(bytes, Ordering::AcqRel);
                let credit = StreamRequest::Credit { id: self.id, bytes };
                // A node that is gone needs no credit.
                let _ = self.socket.requests.send(credit).await;
                Some(Ok(chunk))
            }
            Err(error) => Some(Err(stream_error(&error))),
        }
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if lock(&self.socket.streams).remove(&self.id).is_some() {
            let (requests, id) = (self.socket.requests.clone(), self.id);
            if requests.try_send(StreamRequest::Close { id }).is_err()
                && let Ok(runtime) = tokio::runtime::Handle::try_current()
            {
                runtime.spawn(async move { requests.send(StreamRequest::Close { id }).await });
            }
        }
    }
}

/// What a node says of a stream, in the words of the surfaces. Its message may hold host paths and goes to the log only.
fn stream_error(error: &StreamError) -> Error {
    let (code, message) = match error.code.as_str() {
        "no_such_container" => (Code::ContainerNotFound, "There is no such container."),
        "not_running" => (Code::WrongState, "The CVM is not running."),
        "agent_silent" => (Code::AgentSilent, "The CVM's guest agent does not answer."),
        "agent_old" => {
            (Code::AgentSilent, "The CVM's OS image is of an older version, whose guest agent cannot say this.")
        }
        "no_such_vm" => (Code::NodeUnreachable, "The node does not have this CVM yet."),
        _ => (Code::AgentSilent, "The CVM cannot be asked right now."),
    };
    Error::new(code, message).with_internal(format!("{}: {}", error.code, error.message))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
