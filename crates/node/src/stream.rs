//! Logs, container lists and looks at machines over the one WebSocket that the node keeps open.
//!
//! The one rule: nothing is sent that the reader has not given credit for, so a reader that sleeps costs a window of
//! memory and holds up nobody else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use holdfast_model::node::{STREAM_WINDOW, StreamError, StreamReply, StreamRequest};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::hypervisor::{Hypervisor, LogSink, stream_error};
use crate::server::{CallError, Server, Socket};
use crate::session::Backoff;

/// Streams that may be open at once.
const MAX_STREAMS: usize = 1024;
/// Largest piece of a log in one frame.
const PIECE: usize = 32 * 1024;
const PING: Duration = Duration::from_secs(20);
/// Without a frame (a pong at least) for this long the socket is dead.
const SILENCE: Duration = Duration::from_secs(60);

/// Keeps the socket open. Ends with the session.
pub(crate) async fn serve(server: &Server, session: Uuid, hypervisor: Arc<dyn Hypervisor>) -> Option<CallError> {
    let mut backoff = Backoff::new();
    loop {
        match server.stream(session).await {
            Ok(socket) => {
                debug!("stream socket open");
                let opened = Instant::now();
                Connection::run(socket, hypervisor.clone()).await;
                if opened.elapsed() > Duration::from_secs(10) {
                    backoff.reset();
                }
            }
            Err(error @ (CallError::Stale | CallError::Unauthorized)) => return Some(error),
            Err(error) => warn!(%error, "the stream socket cannot be opened; trying again"),
        }
        backoff.wait().await;
    }
}

struct Stream {
    credit: Arc<Semaphore>,
    task: AbortHandle,
}

struct Connection {
    hypervisor: Arc<dyn Hypervisor>,
    out: mpsc::Sender<Message>,
    streams: HashMap<u64, Stream>,
    tasks: JoinSet<u64>,
}

impl Connection {
    /// Serves one socket until it breaks; all its streams end with it.
    async fn run(socket: Socket, hypervisor: Arc<dyn Hypervisor>) {
        let (sink, mut frames) = socket.split();
        let (out, outgoing) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            write(sink, outgoing).await;
            // No stream has this number, since the server counts from one.
            0
        });
        let mut connection = Self { hypervisor, out, streams: HashMap::new(), tasks };
        connection.read(&mut frames).await;
    }

    async fn read(&mut self, frames: &mut SplitStream<Socket>) {
        let mut heard = Instant::now();
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                Some(ended) = self.tasks.join_next() => {
                    match ended {
                        Ok(0) => return,
                        Ok(id) => drop(self.streams.remove(&id)),
                        Err(error) if error.is_panic() => warn!(%error, "a stream failed"),
                        Err(_) => {}
                    }
                    continue;
                }
                () = tokio::time::sleep_until(heard + SILENCE) => {
                    warn!("the stream socket is silent; opening a new one");
                    return;
                }
            };
            heard = Instant::now();
            match frame {
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(request) => self.request(request).await,
                    Err(error) => warn!(%error, "a stream request that this node does not understand"),
                },
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    }

    async fn request(&mut self, request: StreamRequest) {
        match request {
            StreamRequest::Logs { id, vm, source, options } => {
                let Some((credit, out)) = self.admit(id).await else { return };
                let hypervisor = self.hypervisor.clone();
                let stream_credit = credit.clone();
                let task = self.tasks.spawn(async move {
                    let mut sink = Sink { id, credit, out: out.clone() };
                    let error = hypervisor.logs(vm, source, options, &mut sink).await.err();
                    reply(&out, StreamReply::End { id, error }).await;
                    id
                });
                self.streams.insert(id, Stream { credit: stream_credit, task });
            }
            StreamRequest::Containers { id, vm } => {
                let Some((credit, out)) = self.admit(id).await else { return };
                let hypervisor = self.hypervisor.clone();
                let task = self.tasks.spawn(async move {
                    let answer = match hypervisor.containers(vm).await {
                        Ok(containers) => StreamReply::Containers { id, containers },
                        Err(error) => StreamReply::End { id, error: Some(error) },
                    };
                    reply(&out, answer).await;
                    id
                });
                self.streams.insert(id, Stream { credit, task });
            }
            StreamRequest::Stats { id, vm } => {
                let Some((credit, out)) = self.admit(id).await else { return };
                let hypervisor = self.hypervisor.clone();
                let task = self.tasks.spawn(async move {
                    let answer = match hypervisor.stats(vm).await {
                        Ok(stats) => StreamReply::Stats { id, stats },
                        Err(error) => StreamReply::End { id, error: Some(error) },
                    };
                    reply(&out, answer).await;
                    id
                });
                self.streams.insert(id, Stream { credit, task });
            }
            StreamRequest::Credit { id, bytes } => {
                if let Some(stream) = self.streams.get(&id) {
                    let room = Semaphore::MAX_PERMITS - stream.credit.available_permits();
                    stream.credit.add_permits(usize::try_from(bytes).unwrap_or(usize::MAX).min(room / 2));
                }
            }
            StreamRequest::Close { id } => {
                if let Some(stream) = self.streams.remove(&id) {
                    stream.task.abort();
                }
            }
        }
    }

    async fn admit(&self, id: u64) -> Option<(Arc<Semaphore>, mpsc::Sender<Message>)> {
        let refusal: Option<StreamError> = if self.streams.len() >= MAX_STREAMS {
            Some(stream_error("internal", "too many streams on this node"))
        } else if id == 0 || self.streams.contains_key(&id) {
            Some(stream_error("internal", "the stream id is taken"))
        } else {
            None
        };
        if refusal.is_some() {
            reply(&self.out, StreamReply::End { id, error: refusal }).await;
            return None;
        }
        let window = usize::try_from(STREAM_WINDOW).unwrap_or(usize::MAX);
        Some((Arc::new(Semaphore::new(window)), self.out.clone()))
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut outgoing: mpsc::Receiver<Message>) {
    let mut ping = tokio::time::interval(PING);
    loop {
        let message = tokio::select! {
            message = outgoing.recv() => message,
            _ = ping.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(message) = message else { return };
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

async fn reply(out: &mpsc::Sender<Message>, reply: StreamReply) {
    match serde_json::to_string(&reply) {
        Ok(text) => drop(out.send(Message::text(text)).await),
        Err(error) => warn!(%error, "a stream reply that cannot be written"),
    }
}

/// The sending end of one stream.
struct Sink {
    id: u64,
    credit: Arc<Semaphore>,
    out: mpsc::Sender<Message>,
}

#[async_trait]
impl LogSink for Sink {
    async fn write(&mut self, channel: u8, mut data: Bytes) -> bool {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            let size = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            match self.credit.acquire_many(size).await {
                Ok(permits) => permits.forget(),
                Err(_) => return false,
            }
            let mut frame = BytesMut::with_capacity(9 + piece.len());
            frame.put_u64(self.id);
            frame.put_u8(channel);
            frame.put_slice(&piece);
            if self.out.send(Message::Binary(frame.freeze())).await.is_err() {
                return false;
            }
        }
        true
    }
}
