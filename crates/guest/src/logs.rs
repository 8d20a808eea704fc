//! Logs of containers, and of the script of runner `bash`, as streams to the host.
//!
//! The one rule: a stream moves at the pace of its reader. What the reader gave no credit for stays in docker's files; the
//! agent holds one buffer per stream.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::guest::LogOptions;
use holdfast_model::node::StreamError;
use holdfast_model::time::moment;

use crate::session::Agent;
use crate::{containers, engine, runner, tail};

/// Tells a stream's thread that nobody listens any more, and wakes it from a read.
#[derive(Default)]
pub struct Stop {
    stopped: AtomicBool,
    reading: Mutex<Option<UnixStream>>,
}

impl Stop {
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub fn now(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(stream) = self.reading.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn reads(&self, stream: Option<UnixStream>) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = stream;
        if self.stopped() {
            self.now();
        }
    }
}

fn error(code: &str, message: impl Into<String>) -> StreamError {
    StreamError { code: code.to_owned(), message: message.into() }
}

/// Sends one log until its end, or until it is stopped.
pub fn stream(agent: &Agent, id: u64, container: &str, options: &LogOptions, stop: &Stop) -> Result<(), StreamError> {
    let name = container.strip_prefix('/').unwrap_or(container);
    let bad_time =
        |text: &str| error("internal", format!("{text:?} is no time: RFC 3339, unix seconds or a duration like 10m"));
    let now = tail::now();
    let since = options.since.as_deref().map(|t| moment(t, now).ok_or_else(|| bad_time(t))).transpose()?;
    let until = options.until.as_deref().map(|t| moment(t, now).ok_or_else(|| bad_time(t))).transpose()?;
    if let Some(lines) = runner::script_log(name) {
        return stream_script(agent, id, &lines, options, (since, until), stop);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || !name.chars().all(plain) {
        return Err(error("no_such_container", format!("no container {container:?}")));
    }
    let mut query = format!("stdout=1&stderr=1&follow={}&timestamps={}", options.follow, options.timestamps);
    query.push_str(&options.tail.map_or_else(String::new, |n| format!("&tail={n}")));
    for (key, time) in [("since", since), ("until", until)] {
        if let Some(Timestamp(micros)) = time {
            query.push_str(&format!(
                "&{key}={}.{:09}",
                micros.div_euclid(1_000_000),
                micros.rem_euclid(1_000_000) * 1000
            ));
        }
    }
    let open = |name: &str| {
        engine::request("GET", &format!("/containers/{name}/logs?{query}"), Duration::from_secs(20))
            .map_err(|e| error("not_running", format!("docker does not answer: {}", e.kind())))
    };
    let mut answer = open(name)?;
    if answer.status == 404
        && let Some(found) = containers::of_service(name)
    {
        answer = open(&found)?;
    }
    match answer.status {
        200 => {}
        404 => return Err(error("no_such_container", format!("no container {container:?}"))),
        _ => return Err(error("internal", answer.error_message())),
    }
    answer.body.wait_for_ever().map_err(|e| error("internal", e.to_string()))?;
    stop.reads(answer.body.stopper().ok());
    let framed = !answer.content_type.contains("raw-stream");
    let result = copy(answer.body, framed, |channel, data| agent.send_log(id, stop, channel, data));
    stop.reads(None);
    match result {
        Err(e) if !stop.stopped() => Err(error("internal", format!("reading the log: {}", e.kind()))),
        _ => Ok(()),
    }
}

/// Takes docker's framing off: `channel, 0, 0, 0, length` before each piece, or none for a container with a terminal.
fn copy(mut body: impl Read, framed: bool, mut send: impl FnMut(u8, &[u8]) -> bool) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let (channel, mut left) = if framed {
            let mut head = [0; 8];
            match body.read_exact(&mut head) {
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            (if head[0] == 2 { 2 } else { 1 }, u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize)
        } else {
            (1, usize::MAX)
        };
        while left > 0 {
            let most = left.min(buffer.len());
            let n = body.read(&mut buffer[..most])?;
            if n == 0 || !send(channel, &buffer[..n]) {
                return Ok(());
            }
            left -= n;
        }
    }
}

fn stream_script(
    agent: &Agent,
    id: u64,
    lines: &tail::Tail,
    options: &LogOptions,
    (since, until): (Option<Timestamp>, Option<Timestamp>),
    stop: &Stop,
) -> Result<(), StreamError> {
    let wanted = |line: &tail::Line| since.is_none_or(|t| line.at >= t) && until.is_none_or(|t| line.at <= t);
    let (mut found, mut next, mut ended) = lines.read(0);
    found.retain(wanted);
    if let Some(count) = options.tail {
        let keep = usize::try_from(count).unwrap_or(usize::MAX);
        found.drain(..found.len().saturating_sub(keep));
    }
    loop {
        for line in &found {
            let stamp = if options.timestamps { format!("{} ", line.at) } else { String::new() };
            if !agent.send_log(id, stop, line.channel, &[stamp.as_bytes(), &line.bytes].concat()) {
                return Ok(());
            }
        }
        let over = ended || until.is_some_and(|t| tail::now() > t);
        if !options.follow || over || stop.stopped() {
            return Ok(());
        }
        lines.wait(next, Duration::from_millis(500));
        (found, next, ended) = lines.read(next);
        found.retain(wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_framing() {
        let mut seen = Vec::new();
        let bytes = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x02de";
        copy(&bytes[..], true, |channel, data| {
            seen.push((channel, data.to_vec()));
            true
        })
        .unwrap();
        assert_eq!(seen, [(1, b"abc".to_vec()), (2, b"de".to_vec())]);
        let mut raw = Vec::new();
        copy(&b"plain"[..], false, |_, data| {
            raw.extend_from_slice(data);
            true
        })
        .unwrap();
        assert_eq!(raw, b"plain");
    }
}
