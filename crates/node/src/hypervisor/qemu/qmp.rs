//! The few QMP commands that the node needs, each over a connection of its own.
//!
//! The one rule: QMP is a convenience. QEMU may hang or its answers may never end, so every exchange has a deadline and
//! a limit, and whoever needs a certain end kills the process afterwards.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::argv::QMP_SOCKET;

const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of answers and events that are read at most.
const MOST: u64 = 1024 * 1024;

/// Connects to a socket in `folder`, however long that path is: the kernel limits the path of a socket to 107 bytes, but
/// not what is reached through an open folder.
pub async fn connect(folder: &Path, socket: &str) -> io::Result<UnixStream> {
    let dir = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd()));
    UnixStream::connect(path).await
}

/// Runs one command and returns its answer.
pub async fn execute(folder: &Path, command: &str) -> io::Result<Value> {
    tokio::time::timeout(PATIENCE, exchange(folder, command))
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

async fn exchange(folder: &Path, command: &str) -> io::Result<Value> {
    let stream = connect(folder, QMP_SOCKET).await?;
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(MOST)).lines();
    let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let greeting = lines.next_line().await?.ok_or_else(eof)?;
    if !greeting.contains("\"QMP\"") {
        return Err(io::Error::other("this is not QMP"));
    }
    for name in ["qmp_capabilities", command] {
        write.write_all(format!("{}\n", json!({ "execute": name, "id": name })).as_bytes()).await?;
        loop {
            let line = lines.next_line().await?.ok_or_else(eof)?;
            let mut answer: Value = serde_json::from_str(&line)?;
            if answer["id"] != name {
                continue;
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error["desc"].as_str().unwrap_or("refused").to_owned()));
            }
            if name == command {
                return Ok(answer["return"].take());
            }
            break;
        }
    }
    Err(io::Error::other("no command"))
}
