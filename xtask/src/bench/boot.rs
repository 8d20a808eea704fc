//! Boots through the control plane and, in turn with them, of the same QEMU command line by hand.
//!
//! The one rule: times of one boot are taken on one clock, this machine's: the moment of the request here, the moments
//! of the operation's events from the server, the moment of QEMU's start from the kernel.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use holdfast_harness::client::Client;
use holdfast_harness::server::{Options, Server};
use holdfast_harness::{operation, process, until};
use serde_json::{Value, json};

use super::plain::{self, Plain};
use super::stats::Samples;
use crate::{root, ui};

const LIMIT: Duration = Duration::from_secs(300);
/// More boots, measured up to the agent's answer, for each whole one: one boot differs from the next by more than our share.
const SHORT_BOOTS: usize = 3;

/// One deployment; milliseconds after the request.
struct Deployed {
    qemu: f64,
    /// The agent's answer reached the node.
    word: f64,
    /// The operation says that the agent answered.
    agent: f64,
    app_up: f64,
    answers: f64,
}

pub struct Boots {
    pub runs: usize,
    pub to_qemu: Samples,
    /// From the agent's answer to the operation that says so.
    pub after_word: Samples,
    pub to_agent: Samples,
    pub plain_to_agent: Samples,
    pub to_app_up: Samples,
    pub to_answer: Samples,
    pub plain: Vec<Plain>,
    pub accelerator: String,
    /// (all, not shared with files) in bytes, of the server with its embedded node and no VM.
    pub idle: (u64, u64),
}

pub fn measure(binary: &Path, folder: &Path, runs: usize) -> Result<Boots> {
    let compose = fs::read_to_string(root().join("examples/hello/docker-compose.yml"))?;
    let mut server = Server::start(Options::new(binary, folder))?;
    let client = server.client()?;
    let idle = idle_memory(&server)?;
    ui::say(format!("  idle: {:.1} MB resident, {:.1} MB of it not shared", megabytes(idle.0), megabytes(idle.1)));
    let (mut deployed, mut plain) = (Vec::new(), Vec::new());
    let (mut short, mut plain_short) = (Vec::new(), Vec::new());
    let mut accelerator = String::from("?");
    for run in 1..=runs {
        let name = format!("bench-{run}");
        let (cvm, times) = deploy(&client, &server, &name, &compose)?;
        ui::say(format!(
            "  run {run}: through the control plane: QEMU after {:.0} ms, agent {:.0} ms, app {:.0} ms",
            times.qemu, times.agent, times.answers
        ));
        deployed.push(times);
        // Its command line, while it still runs; its disks only when it is gone.
        let line = plain::CommandLine::of_vm(folder, &folder.join("by-hand"))?;
        accelerator = line.accelerator();
        line.make_disks()?;
        client.delete(&format!("/api/v1/cvms/{cvm}"))?.ok()?;
        until(LIMIT, "the VM is gone", || Ok(process::vms_of(folder).is_empty().then_some(())))?;
        let times = plain::boot(&line, &compose)?;
        ui::say(format!("  run {run}: by hand: agent {:.0} ms, app {:.0} ms", times.agent, times.answers));
        plain.push(times);
        for part in 1..=SHORT_BOOTS {
            let boot = begin(&client, &server, &format!("bench-{run}-{part}"), &compose)?;
            let times = to_agent(&client, &server, &boot)?;
            // What has begun to run is not deleted in the middle of its create.
            wait(&client, &boot.operation, operation::is_over)?;
            let line = plain::CommandLine::of_vm(folder, &folder.join("by-hand"))?;
            line.make_disks()?;
            client.delete(&format!("/api/v1/cvms/{}", boot.cvm))?.ok()?;
            until(LIMIT, "the VM is gone", || Ok(process::vms_of(folder).is_empty().then_some(())))?;
            let by_hand = plain::to_agent(&line)?;
            ui::say(format!("  run {run}: agent {:.0} ms, by hand {by_hand:.0} ms", times.2));
            short.push(times);
            plain_short.push(by_hand);
        }
    }
    server.stop()?;
    let of = |pick: fn(&Deployed) -> f64| Samples::new(deployed.iter().map(pick).collect());
    let all: Vec<_> = deployed.iter().map(|d| (d.qemu, d.word, d.agent)).chain(short).collect();
    let of_all = |pick: fn(&(f64, f64, f64)) -> f64| Samples::new(all.iter().map(pick).collect());
    Ok(Boots {
        runs,
        to_qemu: of_all(|(qemu, _, _)| *qemu),
        after_word: of_all(|(_, word, agent)| agent - word),
        to_agent: of_all(|(_, _, agent)| *agent),
        plain_to_agent: Samples::new(plain.iter().map(|p| p.agent).chain(plain_short).collect()),
        to_app_up: of(|d| d.app_up),
        to_answer: of(|d| d.answers),
        plain,
        accelerator,
        idle,
    })
}

/// The least memory that was seen while nothing happened for a few seconds.
fn idle_memory(server: &Server) -> Result<(u64, u64)> {
    let id = server.id().context("the server runs")?;
    let start = std::time::Instant::now();
    until(Duration::from_secs(30), "idle memory", || {
        Ok((start.elapsed() >= Duration::from_secs(5)).then(|| process::resident(id)).flatten())
    })
}

/// A deployment that was asked for and whose QEMU runs.
struct Begun {
    cvm: String,
    operation: String,
    /// When it was asked for, on the clock of [`since_midnight`].
    request: f64,
    /// Milliseconds after the request.
    qemu: f64,
}

impl Begun {
    fn after(&self, moment: f64) -> f64 {
        (moment - self.request).rem_euclid(DAY)
    }
}

fn begin(client: &Client, server: &Server, name: &str, compose: &str) -> Result<Begun> {
    let provisioned = client.provision(name, compose, &json!({}))?.ok()?;
    let request = since_midnight()?;
    let cvm = client.commit(&provisioned, None)?.ok()?;
    let cvm = cvm["vm_uuid"].as_str().context("the commit answer has no vm_uuid")?.to_owned();
    let qemu = until(LIMIT, "QEMU runs", || Ok(process::vms_of(server.data_dir()).first().copied()))?;
    let qemu = (started_at(qemu)? - request).rem_euclid(DAY);
    let operation = operation::newest(client, &cvm)?["id"].as_str().context("an operation without an id")?.to_owned();
    Ok(Begun { cvm, operation, request, qemu })
}

/// (QEMU, the agent's word, the operation's), when step `boot` is over.
fn to_agent(client: &Client, server: &Server, boot: &Begun) -> Result<(f64, f64, f64)> {
    let operation = wait(client, &boot.operation, |operation| step_end(operation, "boot").is_ok())?;
    let word = answered(&server.log_path(), &boot.cvm)?;
    Ok((boot.qemu, boot.after(word), boot.after(step_end(&operation, "boot")?)))
}

/// When the node heard of the agent, from its log: nothing else says so before the control plane has done its part.
fn answered(log: &Path, cvm: &str) -> Result<f64> {
    let log = fs::read_to_string(log)?;
    let mut lines = log.lines().filter(|line| line.contains(cvm) && line.contains("the guest agent answered"));
    let line = lines.next().context("the log does not say that the agent answered")?;
    let moment = line.split_whitespace().next().and_then(time_of_day);
    moment.with_context(|| format!("no time in {line}"))
}

fn deploy(client: &Client, server: &Server, name: &str, compose: &str) -> Result<(String, Deployed)> {
    let boot = begin(client, server, name, compose)?;
    let (qemu, word, agent) = to_agent(client, server, &boot)?;
    let operation = wait(client, &boot.operation, operation::is_over)?;
    let url = until(LIMIT, "the app has a URL", || Ok(client.app_urls(&boot.cvm)?.into_iter().next()))?;
    let answers = until(LIMIT, "the app answers", || {
        let answer = client.send("GET", &url, &[], None).ok().filter(|a| a.status == 200);
        answer.map(|_| since_midnight()).transpose()
    })?;
    let app_up = boot.after(step_end(&operation, "launch")?);
    let times = Deployed { qemu, word, agent, app_up, answers: boot.after(answers) };
    Ok((boot.cvm, times))
}

/// The operation when it is as wanted. Asked for in long waits: neither server nor guest is to be kept busy while it boots,
/// because by hand nobody does that either.
fn wait(client: &Client, id: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    until(LIMIT, "the deployment is as far as that", || {
        let operation = client.get(&format!("/holdfast/v1/operations/{id}/wait?timeout=30"))?.ok()?;
        Ok((wanted(&operation) || operation::is_over(&operation)).then_some(operation))
    })
}

const DAY: f64 = 86_400_000.0;

/// Milliseconds since midnight UTC, which is all that has to be compared.
pub fn since_midnight() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1000.0 % DAY)
}

fn step_end(operation: &Value, step: &str) -> Result<f64> {
    let steps = operation["steps"].as_array().into_iter().flatten();
    let step =
        steps.into_iter().find(|s| s["name"] == step).with_context(|| format!("no step {step} in {operation}"))?;
    let text = step["completed_at"].as_str().with_context(|| format!("step {step} is not over"))?;
    time_of_day(text).with_context(|| format!("{text} is no time"))
}

/// `2026-01-31T12:34:56.789012Z` in milliseconds since midnight.
pub fn time_of_day(text: &str) -> Option<f64> {
    let (_, time) = text.trim_end_matches('Z').trim_end_matches("+00:00").split_once('T')?;
    let mut parts = time.split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(((hours * 60.0 + minutes) * 60.0 + seconds) * 1000.0)
}

/// When a process was started, to 10 ms, in milliseconds since midnight.
fn started_at(id: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name, in parentheses, may hold anything; counting starts after it.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: f64 = fields.split_whitespace().nth(19).context("stat has a start time")?.parse()?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split_whitespace().next().context("uptime")?.parse()?;
    Ok((since_midnight()? - (uptime * 1000.0 - ticks * 10.0)).rem_euclid(DAY))
}

pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_000_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        assert_eq!(time_of_day("2026-01-31T00:01:02.500000Z"), Some(62_500.0));
        assert_eq!(time_of_day("2026-01-31T01:00:00+00:00"), Some(3_600_000.0));
        assert_eq!(time_of_day("yesterday"), None);
    }

    #[test]
    fn this_process_started_a_moment_ago() {
        let age = since_midnight().unwrap() - started_at(std::process::id() as i32).unwrap();
        assert!((-20.0..60_000.0).contains(&age.rem_euclid(DAY).min(age.abs())), "{age}");
    }
}
