//! `cargo xtask bench logs`: 100 followers of one busy log of a real VM, of its console and of a container: what the server
//! uses for them, what they get, and what they miss.
//!
//! The one rule: every line has a number, so that a line that a follower did not get is counted and not guessed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use holdfast_harness::operation;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::task::JoinSet;

use super::boot::megabytes;
use super::ops::cloud::Cloud;
use super::ops::http::{Connection, Target};
use super::ops::report::{self, Report};
use super::ops::{Bench, Line};
use super::{Scratch, is_quick, with_vms};
use crate::ui;

const FOLLOWERS: usize = 100;
const LIMIT: Duration = Duration::from_secs(300);
/// For all that will get anything to have got it.
const OPENING: Duration = Duration::from_secs(60);
/// What a numbered line begins with.
const MARK: &[u8] = b"line ";

/// A container that writes the same numbered lines of 100 bytes to its log and to the console of the VM, 25 at a time.
const COMPOSE: &str = r#"services:
  busy:
    image: holdfast/hello:latest
    privileged: true
    command:
      - sh
      - -c
      - |
        exec 3>/dev/ttyS0
        n=100000000
        while :; do
          i=0
          while [ $$i -lt 25 ]; do
            n=$$((n+1)); i=$$((i+1))
            echo "line $$n ....................................................................................."
            echo "line $$n ....................................................................................." >&3
          done
          sleep 0.1
        done
"#;

/// What one follower got.
#[derive(Debug, Default, Clone)]
struct Seen {
    /// Of a line that is not whole yet.
    rest: Vec<u8>,
    lines: u64,
    bytes: u64,
    last: Option<u64>,
    /// Numbers that were jumped over.
    lost: u64,
    /// Numbers that came again.
    repeated: u64,
}

impl Seen {
    fn read(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.line();
                self.rest.clear();
            }
        }
    }

    fn line(&mut self) {
        // A console says other things too.
        let Some(number) = self.rest.strip_prefix(MARK).and_then(number) else { return };
        self.lines += 1;
        match self.last {
            Some(last) if number <= last => self.repeated += 1,
            last => {
                self.lost += last.map_or(0, |last| number - last - 1);
                self.last = Some(number);
            }
        }
    }
}

/// The digits up to the next space.
fn number(text: &[u8]) -> Option<u64> {
    let end = text.iter().position(|byte| *byte == b' ')?;
    std::str::from_utf8(&text[..end]).ok()?.parse().ok()
}

/// All followers of one log.
struct Followed {
    name: &'static str,
    served: usize,
    /// Why others were not.
    refusal: Option<String>,
    seconds: f64,
    /// Together, in that time.
    lines: u64,
    bytes: u64,
    /// By the app in that time, as the foremost follower saw it.
    written: u64,
    lost: u64,
    repeated: u64,
    /// Lines between the foremost follower and the hindmost at the end.
    behind: u64,
    cpu_seconds: f64,
    /// Resident memory in bytes, before and at most.
    before: u64,
    resident: u64,
}

pub fn run(words: &[&str]) -> Result<()> {
    let quick = is_quick("logs", words)?;
    let time = Duration::from_secs(if quick { 5 } else { 30 });
    let bench = Bench::new(with_vms()?, quick)?;
    let folder = Scratch::new()?;
    ui::heading("A real VM with a busy log");
    let mut cloud = Cloud::real(&bench.binary, &folder.0)?;
    let client = cloud.server.client()?;
    let cvm = client.deploy("bench-logs", COMPOSE, &json!({}))?;
    let create = operation::settle(&client, &cvm, LIMIT)?;
    ensure!(create["status"] == "done", "the VM was not made: {create}");
    let detail = client.get(&format!("/api/v1/cvms/{cvm}"))?.ok()?;
    let logs = &detail["logs"];
    let (serial, base) = (logs["serial"].as_str(), logs["container_log_base"].as_str());
    let (serial, base) = serial.zip(base).context("a CVM has log URLs")?;
    let (_, query) = serial.split_once('?').context("a log URL has a query")?;
    let path = |url: &str| url.strip_prefix(&client.base).unwrap_or(url).to_owned();
    let options = "follow=true&text=true&tail=0";
    let console = format!("{}&{options}", path(serial));
    let container = format!("{}/busy?{query}&{options}", path(base));
    ui::heading(format!("{FOLLOWERS} followers"));
    let mut all = Vec::new();
    for (name, path) in [("console", console), ("container's log", container)] {
        let followed = bench.runtime.block_on(follow(&cloud, name, &path, time))?;
        ui::say(format!(
            "  {name}: {} of {FOLLOWERS} served, {:.0} lines/s, {} lost",
            followed.served,
            followed.lines as f64 / followed.seconds,
            followed.lost
        ));
        all.push(followed);
    }
    cloud.server.stop()?;
    write(quick, &all)
}

/// Follows a log with all followers for that time, once all of them that will get anything have.
async fn follow(cloud: &Cloud, name: &'static str, path: &str, time: Duration) -> Result<Followed> {
    let before = cloud.resident()?;
    let seen: Vec<Arc<Mutex<Seen>>> = (0..FOLLOWERS).map(|_| Arc::default()).collect();
    // Nobody leaves before the time is over unless sent away.
    let mut followers = JoinSet::new();
    for seen in &seen {
        followers.spawn(read(cloud.target.clone(), path.to_owned(), seen.clone()));
    }
    let (start, mut refusal) = (Instant::now(), None);
    while seen.iter().filter(|seen| lock(seen).lines > 0).count() < followers.len() {
        ensure!(start.elapsed() < OPENING, "some followers of the {name} get nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
        while let Some(ended) = followers.try_join_next() {
            refusal = Some(ended?);
        }
    }
    let foremost = |all: &[Seen]| all.iter().filter_map(|seen| seen.last).max().unwrap_or_default();
    let copy = || seen.iter().map(|seen| lock(seen).clone()).collect::<Vec<_>>();
    let (start, cpu, first) = (Instant::now(), cloud.cpu()?, copy());
    let mut resident = cloud.resident()?;
    while start.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(100)).await;
        resident = resident.max(cloud.resident()?);
    }
    let (seconds, cpu_seconds, last) = (start.elapsed().as_secs_f64(), cloud.cpu()? - cpu, copy());
    let served = followers.len();
    if let Some(ended) = followers.try_join_next() {
        bail!("a follower of the {name} was left alone: {}", ended?);
    }
    followers.shutdown().await;
    let sum = |pick: fn(&Seen) -> u64| {
        let of = |all: &[Seen]| all.iter().map(pick).sum::<u64>();
        of(&last) - of(&first)
    };
    // Those that were sent away read nothing.
    let hindmost = last.iter().filter_map(|seen| seen.last).min().unwrap_or_default();
    Ok(Followed {
        name,
        served,
        refusal,
        seconds,
        lines: sum(|seen| seen.lines),
        bytes: sum(|seen| seen.bytes),
        written: foremost(&last) - foremost(&first),
        lost: last.iter().map(|seen| seen.lost).sum(),
        repeated: last.iter().map(|seen| seen.repeated).sum(),
        behind: foremost(&last) - hindmost,
        cpu_seconds,
        before,
        resident,
    })
}

/// Reads until the server ends the log; answers what it said.
async fn read(target: Target, path: String, seen: Arc<Mutex<Seen>>) -> String {
    let reading = async {
        let mut connection = Connection::open(&target).await?;
        let mut body = connection.stream(&path).await?;
        let mut last = Bytes::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                lock(&seen).read(&data);
                last = data;
            }
        }
        anyhow::Ok(String::from_utf8_lossy(&last).trim().to_owned())
    };
    let said = reading.await.unwrap_or_else(|error: anyhow::Error| error.to_string());
    // The path holds the URL's token.
    said.split_once(" was answered with ").map_or(said.clone(), |(_, status)| status.to_owned())
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Followed {
    fn lines(&self) -> Vec<Line> {
        let Self { name, served, seconds, .. } = self;
        let per_second = |count: u64| count as f64 / seconds;
        let wanted = per_second(self.written) * FOLLOWERS as f64;
        vec![
            Line::figure(format!("{name}: served of {FOLLOWERS}"), "followers", *served as f64)
                .no_less_than(FOLLOWERS as f64),
            Line::ratio(format!("{name}: lines delivered per second"), "/s", per_second(self.lines), wanted),
            Line::figure(format!("{name}: lost"), "lines", self.lost as f64).below(1.0),
            Line::figure(format!("{name}: foremost follower ahead of the hindmost"), "lines", self.behind as f64),
            Line::figure(
                format!("{name}: server's processor time, of one core"),
                "%",
                self.cpu_seconds / seconds * 100.0,
            ),
            Line::figure(
                format!("{name}: server's processor time per line"),
                "us",
                self.cpu_seconds * 1e6 / self.lines.max(1) as f64,
            ),
            Line::figure(format!("{name}: server's resident memory, largest"), "MB", megabytes(self.resident)),
            Line::figure(
                format!("{name}: memory per follower"),
                "KB",
                self.resident.saturating_sub(self.before) as f64 / 1000.0 / (*served).max(1) as f64,
            ),
        ]
    }
}

fn write(quick: bool, all: &[Followed]) -> Result<()> {
    let lines: Vec<Line> = all.iter().flat_map(Followed::lines).collect();
    let mut notes = String::from("\nA real VM; the server's figures include its node, which is in the same process.");
    for one in all {
        notes += &format!(
            " The {}: {:.0} lines written per second, {:.1} KB per second to each follower, {} lines twice.",
            one.name,
            one.written as f64 / one.seconds,
            one.bytes as f64 / 1000.0 / one.seconds / one.served.max(1) as f64,
            one.repeated
        );
        if let Some(refusal) = &one.refusal {
            notes += &format!(" Sent away: {}, with: {refusal}", FOLLOWERS - one.served);
        }
    }
    notes.push('\n');
    let report = Report {
        name: "logs",
        title: "Followers of a log",
        beside: "comparison",
        lines: &lines,
        notes,
        samples: json!({}),
    };
    report::publish(report, !quick).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_missing_is_counted() {
        let mut seen = Seen::default();
        seen.read(b"booting\nline 7 ...\r\nline 8 ..");
        seen.read(b".\nline 11 ...\nline 11 ...\nline x\nline 12");
        assert_eq!((seen.lines, seen.lost, seen.repeated, seen.last), (4, 2, 1, Some(11)));
        seen.read(b" ...\n");
        assert_eq!((seen.lines, seen.lost, seen.last), (5, 2, Some(12)));
    }
}
