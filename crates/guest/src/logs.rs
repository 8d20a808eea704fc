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
use holdfast_model::time::{moment, nanos};

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

/// Sends one log until its end, or until it is stopped; with `entries`, each of its entries by itself and with its time.
pub fn stream(
    agent: &Agent,
    id: u64,
    container: &str,
    options: &LogOptions,
    entries: bool,
    stop: &Stop,
) -> Result<(), StreamError> {
    let name = container.strip_prefix('/').unwrap_or(container);
    let bad_time =
        |text: &str| error("internal", format!("{text:?} is no time: RFC 3339, unix seconds or a duration like 10m"));
    let now = tail::now();
    let since = options.since.as_deref().map(|t| moment(t, now).ok_or_else(|| bad_time(t))).transpose()?;
    let until = options.until.as_deref().map(|t| moment(t, now).ok_or_else(|| bad_time(t))).transpose()?;
    if let Some(lines) = runner::script_log(name) {
        return stream_script(agent, id, &lines, options, entries, (since, until), stop);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || !name.chars().all(plain) {
        return Err(error("no_such_container", format!("no container {container:?}")));
    }
    let mut query = format!("stdout=1&stderr=1&follow={}&timestamps={}", options.follow, options.timestamps || entries);
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
    let result = if entries {
        let mut split = Entries::default();
        copy(answer.body, framed, |channel, data, whole| {
            split.take(channel, data, framed.then_some(whole), |at, data| agent.send_entry(id, stop, channel, at, data))
        })
        .map(|()| split.end(|channel, at, data| agent.send_entry(id, stop, channel, at, data)))
    } else {
        copy(answer.body, framed, |channel, data, _| agent.send_log(id, stop, channel, data))
    };
    stop.reads(None);
    match result {
        Err(e) if !stop.stopped() => Err(error("internal", format!("reading the log: {}", e.kind()))),
        _ => Ok(()),
    }
}

/// Takes docker's framing off: `channel, 0, 0, 0, length` before each piece, or none for a container with a terminal. `send`
/// is told whether the piece ends here.
fn copy(mut body: impl Read, framed: bool, mut send: impl FnMut(u8, &[u8], bool) -> bool) -> std::io::Result<()> {
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
            left -= n;
            if n == 0 || !send(channel, &buffer[..n], left == 0) {
                return Ok(());
            }
        }
    }
}

/// Finds the entries in what docker sends with timestamps: a time, a space, and what was written then.
///
/// The one rule: every byte that was written arrives once. Where no time can be read, all of it is taken for what was
/// written, at the time of the entry before.
#[derive(Default)]
struct Entries {
    /// Of stdout and stderr.
    channels: [Open; 2],
}

#[derive(Default)]
struct Open {
    /// What has come of an entry that has not ended yet.
    bytes: Vec<u8>,
    /// When the last one was written, in nanoseconds since 1970.
    at: i64,
}

/// An entry that has not ended by then is sent in pieces. Docker cuts at 16 KiB.
const LONGEST: usize = 64 * 1024;

impl Entries {
    /// Takes a piece. `ends` says whether an entry ends with it; `None`: entries end with their lines.
    fn take(&mut self, channel: u8, data: &[u8], ends: Option<bool>, mut send: impl FnMut(i64, &[u8]) -> bool) -> bool {
        let open = &mut self.channels[usize::from(channel == 2)];
        let mut add = |part: &[u8], ends: bool| {
            open.bytes.extend_from_slice(part);
            !(ends || open.bytes.len() >= LONGEST) || open.send(&mut send)
        };
        match ends {
            Some(ends) => add(data, ends),
            None => data.split_inclusive(|byte| *byte == b'\n').all(|line| add(line, line.ends_with(b"\n"))),
        }
    }
}

impl Entries {
    /// What had not ended when the log did.
    fn end(self, mut send: impl FnMut(u8, i64, &[u8]) -> bool) {
        for (channel, mut open) in (1..).zip(self.channels) {
            open.send(|at, data| send(channel, at, data));
        }
    }
}

impl Open {
    fn send(&mut self, mut send: impl FnMut(i64, &[u8]) -> bool) -> bool {
        let bytes = std::mem::take(&mut self.bytes);
        let space = bytes.iter().take(40).position(|byte| *byte == b' ');
        let time = space.and_then(|end| nanos(std::str::from_utf8(&bytes[..end]).ok()?));
        let written = match (time, space) {
            (Some(at), Some(end)) => {
                self.at = at;
                &bytes[end + 1..]
            }
            _ => &bytes[..],
        };
        written.is_empty() || send(self.at, written)
    }
}

fn stream_script(
    agent: &Agent,
    id: u64,
    lines: &tail::Tail,
    options: &LogOptions,
    entries: bool,
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
            let sent = if entries {
                agent.send_entry(id, stop, line.channel, line.at.micros().saturating_mul(1000), &line.bytes)
            } else {
                let stamp = if options.timestamps { format!("{} ", line.at) } else { String::new() };
                agent.send_log(id, stop, line.channel, &[stamp.as_bytes(), &line.bytes].concat())
            };
            if !sent {
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
        copy(&bytes[..], true, |channel, data, _| {
            seen.push((channel, data.to_vec()));
            true
        })
        .unwrap();
        assert_eq!(seen, [(1, b"abc".to_vec()), (2, b"de".to_vec())]);
        let mut raw = Vec::new();
        copy(&b"plain"[..], false, |_, data, _| {
            raw.extend_from_slice(data);
            true
        })
        .unwrap();
        assert_eq!(raw, b"plain");
    }

    /// Entries of a log with docker's timestamps, read in pieces of `size` bytes.
    fn entries(bytes: &[u8], framed: bool, size: usize) -> Vec<(u8, i64, Vec<u8>)> {
        struct Slow<'a>(&'a [u8], usize);
        impl Read for Slow<'_> {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                let most = into.len().min(self.1);
                self.0.read(&mut into[..most])
            }
        }
        let (mut split, mut seen) = (Entries::default(), Vec::new());
        copy(Slow(bytes, size), framed, |channel, data, whole| {
            split.take(channel, data, framed.then_some(whole), |at, data| {
                seen.push((channel, at, data.to_vec()));
                true
            })
        })
        .unwrap();
        split.end(|channel, at, data| {
            seen.push((channel, at, data.to_vec()));
            true
        });
        seen
    }

    #[test]
    fn entries_have_their_times_and_every_byte() {
        let at =
            |second: i64| (holdfast_model::time::nanos_text(second * 1_000_000_000 + 1), second * 1_000_000_000 + 1);
        let frame = |channel: u8, text: &str| {
            let length = u32::try_from(text.len()).unwrap().to_be_bytes();
            [&[channel, 0, 0, 0], &length[..], text.as_bytes()].concat()
        };
        let ((one, at_one), (two, at_two)) = (at(1), at(2));
        // A long line comes in two frames of one time, and the other channel in between.
        let log = [
            frame(1, &format!("{one} long ")),
            frame(2, &format!("{two} error\n")),
            frame(1, &format!("{one} line\n")),
            frame(1, "without a time\n"),
        ]
        .concat();
        let tty = format!("{one} a line\r\n{two} \r\nno time\r\n{two} cut off");
        for size in [1, 3, 7, 10_000] {
            let expected =
                [(1, at_one, "long "), (2, at_two, "error\n"), (1, at_one, "line\n"), (1, at_one, "without a time\n")];
            assert_eq!(entries(&log, true, size), expected.map(|(c, at, text)| (c, at, text.as_bytes().to_vec())));
            let expected =
                [(1, at_one, "a line\r\n"), (1, at_two, "\r\n"), (1, at_two, "no time\r\n"), (1, at_two, "cut off")];
            assert_eq!(
                entries(tty.as_bytes(), false, size),
                expected.map(|(c, at, text)| (c, at, text.as_bytes().to_vec()))
            );
        }
    }
}
