//! A real `holdfast` process, and the HTTP requests a user makes to it.
//!
//! The one rule: only what a user has. The binary, its options, its files and its HTTP API; never a function of a crate of
//! the server, so that what passes here passes for a user too.

#![forbid(unsafe_code)]

pub mod client;
pub mod operation;
pub mod process;
pub mod server;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks again until there is an answer, a few times a second. Fails with `what` when `limit` is over.
pub fn until<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() >= limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// A TCP port of the loopback interface that nobody listens on now.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
