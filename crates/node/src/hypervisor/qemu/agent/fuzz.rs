//! A guest that says whatever it likes, for the fuzzer and its corpus.
//!
//! The one rule: nothing of the channel is left out. The bytes go through the socket, after the greeting that an honest
//! guest gives and with a question and a log open, because that is where lies can do something.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_model::guest::{FromGuest, GuestState, Keys, LogOptions, ToGuest};
use holdfast_model::node::{DesiredVm, STREAM_WINDOW};
use holdfast_model::vm::{RunState, StopMode};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Agent, Peer};
use crate::hypervisor::qemu::argv::AGENT_SOCKET;
use crate::hypervisor::{KeyError, KeySource, View};

/// What is taken from a guest at the most, and so what the node can be made to keep and pass on.
const LONGEST: usize = 4096;

struct NoKeys;

#[async_trait]
impl KeySource for NoKeys {
    async fn keys(&self, _uuid: Uuid) -> Result<Keys, KeyError> {
        Err(KeyError::Unreachable)
    }
}

/// Lets a guest say `said` and hang up.
///
/// # Panics
///
/// When the node takes more from it than it should.
pub async fn hear(said: &[u8]) -> io::Result<()> {
    let folder = std::env::temp_dir().join(format!("hff{}", Uuid::new_v4().simple()));
    std::fs::create_dir(&folder)?;
    let listener = UnixListener::bind(folder.join(AGENT_SOCKET))?;
    let uuid = Uuid::nil();
    let desired = DesiredVm {
        uuid,
        generation: 1,
        run_state: RunState::Running,
        stop: StopMode::Hard,
        boot_epoch: 1,
        spec: None,
    };
    let (_wanted, wanted) = watch::channel(Arc::new(desired));
    let (view, mut seen) = watch::channel(View::default());
    let agent = Agent::open(Peer { uuid, wanted, folder: folder.clone(), keys: Arc::new(NoKeys), view });
    let (stream, _) = listener.accept().await?;
    // It need not come back.
    drop(listener);
    std::fs::remove_file(folder.join(AGENT_SOCKET))?;
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let session = loop {
        let line = lines.next_line().await?.unwrap_or_default();
        if let Ok(ToGuest::Hello { session }) = serde_json::from_str(&line) {
            break session;
        }
    };
    let ack = FromGuest::HelloAck { session, state: GuestState::default() };
    write.write_all((serde_json::to_string(&ack)? + "\n").as_bytes()).await?;
    seen.wait_for(|view| view.guest.agent).await.map_err(io::Error::other)?;
    let (one, two) = (agent.line(), agent.line());
    let question = tokio::spawn(async move { one.containers().await });
    let log =
        tokio::spawn(
            async move { read_log(two.open_logs("app".to_owned(), LogOptions::default(), false).await).await },
        );
    // Both have been asked; what the node says to the lies nobody reads.
    for _ in 0..2 {
        lines.next_line().await?;
    }
    // The node may hang up on it, or not read; both are its right.
    let _ = write.write_all(said).await;
    drop((write, lines));
    agent.drained().await;
    let _ = question.await;
    let taken = log.await.map_err(io::Error::other)?;
    assert!(taken <= STREAM_WINDOW, "{taken} bytes of a log, with credit for {STREAM_WINDOW}");
    let guest = seen.borrow().guest.clone();
    let texts = [&guest.boot_progress, &guest.shutdown_progress];
    let error = guest.boot_error.as_ref().map(|e| e.step.len() + e.message.len());
    let longest = texts.into_iter().flatten().map(String::len).chain(error).max().unwrap_or(0);
    assert!(longest <= 2 * LONGEST, "{longest} bytes of the guest's words were kept");
    std::fs::remove_dir_all(folder)
}

/// Bytes that came, without anything having been passed on.
async fn read_log(opened: Result<super::LogStream, holdfast_model::node::StreamError>) -> u64 {
    let Ok(mut log) = opened else { return 0 };
    let mut taken = 0;
    while let Ok(Some((channel, data, _))) = log.next().await {
        assert!([1, 2].contains(&channel), "channel {channel}");
        taken += data.len() as u64;
    }
    taken
}
