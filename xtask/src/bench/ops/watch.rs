//! Figure 4: from a commit to 1,000 clients that watch the stream of all operations, and what an idle watcher costs.
//!
//! The one rule: the clock starts at the event's own timestamp, which is taken before its transaction is written. So the
//! commit is inside of the figure, and no part of the way is left out.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use tokio::task::JoinSet;

use super::cloud::Cloud;
use super::feed::{Ends, Lines, STREAM};
use super::http::{Connection, Target};
use super::{Bench, Line};
use crate::bench::boot::{since_midnight, time_of_day};
use crate::bench::stats::Samples;

const WATCHERS: usize = 1000;
/// Between two operations.
const PACE: Duration = Duration::from_millis(500);
const GOAL_P99: f64 = 50.0;
const GOAL_KILOBYTES: f64 = 20.0;
/// Streams that are opened at a time.
const OPENERS: usize = 50;

pub struct Watch {
    pub events: usize,
    /// Milliseconds from the event's timestamp to each client's read.
    pub delay: Samples,
    /// The same bytes at the same moments, written by a bare loop over 1,000 sockets.
    pub bare: Samples,
    pub kilobytes: f64,
}

/// What one watcher saw: the event's time of day and when it was read, in milliseconds.
type Seen = Vec<(f64, f64)>;

pub fn measure(bench: &Bench) -> Result<Watch> {
    let folder = bench.scratch("watch")?;
    let rounds = if bench.quick { 10 } else { 60 };
    let mut cloud = Cloud::start(&bench.binary, &folder)?;
    let (seen, kilobytes, line) = bench.runtime.block_on(async {
        let ends = Ends::follow(&cloud.target).await?;
        let cvms = cloud.cvms("watched", 2, &ends).await?;
        let [last, cvm] = &cvms[..] else { anyhow::bail!("two CVMs were asked for") };
        let mut connection = Connection::open(&cloud.target).await?;
        power(&mut connection, cvm, "stop", &ends).await?;
        power(&mut connection, cvm, "start", &ends).await?;
        let before = cloud.resident()?;
        let watchers = watch(&cloud.target, last).await?;
        let kilobytes = (cloud.resident()?.saturating_sub(before)) as f64 / 1000.0 / WATCHERS as f64;
        let mut pace = tokio::time::interval(PACE);
        for round in 0..rounds {
            pace.tick().await;
            power(&mut connection, cvm, if round % 2 == 0 { "stop" } else { "start" }, &ends).await?;
        }
        power(&mut connection, last, "stop", &ends).await?;
        let (seen, line) = finish(watchers).await?;
        anyhow::Ok((seen, kilobytes, line))
    })?;
    cloud.server.stop()?;
    let first = seen.first().context("nobody watched")?;
    let moments: Vec<f64> = first.iter().map(|(at, _)| *at).collect();
    let bare = bench.runtime.block_on(bare(&moments, line))?;
    Ok(Watch { events: first.len(), delay: delays(&seen), bare: delays(&bare), kilobytes })
}

async fn power(connection: &mut Connection, cvm: &str, verb: &str, ends: &Ends) -> Result<()> {
    let path = format!("/api/v1/cvms/{cvm}/{verb}");
    connection.send(Method::POST, &path, &[], bytes::Bytes::new()).await?;
    ends.wait(cvm).await
}

fn delays(seen: &[Seen]) -> Samples {
    Samples::new(seen.iter().flatten().map(|(at, read)| read - at).collect())
}

type Watchers = JoinSet<Result<(Seen, usize)>>;

/// Opens all streams. Each is followed until it brings an event of the resource `last`.
async fn watch(target: &Target, last: &str) -> Result<Watchers> {
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS / OPENERS {
        let mut opening = JoinSet::new();
        for _ in 0..OPENERS {
            let target = target.clone();
            opening.spawn(async move { Lines::open(&target).await });
        }
        while let Some(lines) = opening.join_next().await {
            watchers.spawn(follow(lines??, last.to_owned()));
        }
    }
    Ok(watchers)
}

async fn follow(mut lines: Lines, last: String) -> Result<(Seen, usize)> {
    let (mut seen, mut length) = (Vec::new(), 0);
    while let Some(line) = lines.next().await? {
        let read = since_midnight()?;
        if find(&line, last.as_bytes()).is_some() {
            return Ok((seen, length));
        }
        seen.push((timestamp(&line).context("an event has a timestamp")?, read));
        length = line.len();
    }
    anyhow::bail!("the stream ended before its last event")
}

async fn finish(mut watchers: Watchers) -> Result<(Vec<Seen>, usize)> {
    let (mut all, mut length) = (Vec::new(), 0);
    while let Some(watcher) = watchers.join_next().await {
        let (seen, line) = watcher??;
        all.push(seen);
        length = line;
    }
    Ok((all, length))
}

fn find(line: &[u8], word: &[u8]) -> Option<usize> {
    line.windows(word.len()).position(|window| window == word)
}

fn timestamp(line: &[u8]) -> Option<f64> {
    const KEY: &[u8] = b"\"timestamp\":\"";
    let rest = &line[find(line, KEY)? + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == b'"')?;
    time_of_day(std::str::from_utf8(&rest[..end]).ok()?)
}

/// A thread that writes lines of this length to all sockets, one after the other, at these moments.
async fn bare(moments: &[f64], length: usize) -> Result<Vec<Seen>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let target = Target { address: listener.local_addr()?.to_string(), key: String::new() };
    let begin = moments.first().copied().unwrap_or_default();
    let offsets: Vec<f64> = moments.iter().map(|moment| (moment - begin).max(0.0)).collect();
    let (ready, all_open) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || write(&listener, &offsets, length, &all_open));
    let watchers = watch(&target, "the last line").await?;
    ready.send(()).context("the writer ended early")?;
    let (seen, _) = finish(watchers).await?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    Ok(seen)
}

fn write(
    listener: &TcpListener,
    offsets: &[f64],
    length: usize,
    all_open: &std::sync::mpsc::Receiver<()>,
) -> Result<()> {
    let mut sockets = Vec::with_capacity(WATCHERS);
    for _ in 0..WATCHERS {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        read_head(&mut socket)?;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")?;
        sockets.push(socket);
    }
    all_open.recv()?;
    let start = Instant::now();
    for offset in offsets {
        std::thread::sleep(Duration::from_secs_f64(offset / 1000.0).saturating_sub(start.elapsed()));
        let now = since_midnight()? / 1000.0;
        let head = format!("data: {{\"timestamp\":\"T0:0:{now:.6}Z\",\"filler\":\"");
        let line = format!("{head:-<width$}\"}}\n\n", width = (length + 6).saturating_sub(2));
        for socket in &mut sockets {
            socket.write_all(line.as_bytes())?;
        }
    }
    for socket in &mut sockets {
        socket.write_all(b"data: the last line\n\n")?;
    }
    Ok(())
}

fn read_head(socket: &mut TcpStream) -> Result<()> {
    use std::io::Read;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        let count = socket.read(&mut part)?;
        anyhow::ensure!(count > 0, "the request for {STREAM} ended early");
        head.extend_from_slice(&part[..count]);
    }
    Ok(())
}

impl Watch {
    pub fn lines(&self) -> Vec<Line> {
        let (ours, bare) = (&self.delay, &self.bare);
        vec![
            Line::ratio(format!("commit to SSE client, {WATCHERS} watchers, p50"), "ms", ours.median(), bare.median()),
            Line::ratio(
                format!("commit to SSE client, {WATCHERS} watchers, p99"),
                "ms",
                ours.percentile(99.0),
                bare.percentile(99.0),
            )
            .below(GOAL_P99),
            Line::figure("memory per idle watcher", "KB", self.kilobytes).below(GOAL_KILOBYTES),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_event_is_found_in_its_line() {
        assert_eq!(timestamp(br#"{"seq":1,"timestamp":"2026-01-31T00:00:02.5Z","state":"x"}"#), Some(2500.0));
        assert_eq!(timestamp(b"{\"timestamp\":\"T0:0:86399.250000Z\"}"), Some(86_399_250.0));
        assert_eq!(timestamp(b"{}"), None);
    }
}
