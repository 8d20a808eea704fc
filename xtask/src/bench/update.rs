//! `cargo xtask bench update`: from the request for another compose file to the answer of the new app, on a real VM, and which
//! step takes how much of it.
//!
//! The one rule: the new app is recognized by its own words, so that the old one's last answers do not count; and a whole
//! stop and start of the same VM, in turn with the updates, shows what changing an app in place is worth.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_harness::client::Client;
use holdfast_harness::server::{Options, Server};
use holdfast_harness::{operation, until};
use serde_json::{Value, json};

use super::boot::{since_midnight, time_of_day};
use super::ops::Line;
use super::ops::report::{self, Report};
use super::stats::Samples;
use super::{Scratch, is_quick, with_vms};
use crate::{root, ui};

const LIMIT: Duration = Duration::from_secs(300);
const DAY: f64 = 86_400_000.0;
/// What the app of the example says without a greeting of its own.
const GREETING: &str = "Hello from Holdfast";

/// One update; milliseconds after the request.
struct Updated {
    accepted: f64,
    /// Each step's name and how long it took, in order. The first one begins with the request.
    steps: Vec<(String, f64)>,
    over: f64,
    answers: f64,
}

pub fn run(words: &[&str]) -> Result<()> {
    let quick = is_quick("update", words)?;
    let runs = if quick { 1 } else { 5 };
    let binary = with_vms()?;
    let folder = Scratch::new()?;
    let compose = fs::read_to_string(root().join("examples/hello/docker-compose.yml"))?;
    ensure!(compose.contains(GREETING), "the example greets in other words");
    ui::heading("A real VM");
    let mut server = Server::start(Options::new(&binary, &folder.0))?;
    let client = server.client()?;
    let cvm = client.deploy("bench-update", &compose, &json!({}))?;
    done(&operation::settle(&client, &cvm, LIMIT)?)?;
    let url = until(LIMIT, "the app has a URL", || Ok(client.app_urls(&cvm)?.into_iter().next()))?;
    answered(&client, &url, GREETING)?;
    ui::heading("Updates, and the whole VM stopped and started, in turn");
    let (mut updates, mut restarts) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let greeting = format!("Greeting {run}");
        let updated = update(&client, &cvm, &url, &compose.replace(GREETING, &greeting), &greeting)?;
        let restarted = restart(&client, &cvm, &url, &greeting)?;
        ui::say(format!(
            "  run {run}: update {:.0} ms, the whole VM {restarted:.0} ms; {}",
            updated.answers,
            updated.steps.iter().map(|(name, ms)| format!("{name} {ms:.0}")).collect::<Vec<_>>().join(", ")
        ));
        updates.push(updated);
        restarts.push(restarted);
    }
    server.stop()?;
    write(quick, &updates, restarts)
}

fn update(client: &Client, cvm: &str, url: &str, compose: &str, greeting: &str) -> Result<Updated> {
    let body = json!({"docker_compose_file": compose}).to_string();
    let request = since_midnight()?;
    let after = |moment: f64| (moment - request).rem_euclid(DAY);
    let answer = client.send("PATCH", &format!("/api/v1/cvms/{cvm}"), &[], Some(body.into_bytes()))?.ok()?;
    let accepted = after(since_midnight()?);
    ensure!(answer["restarts"] == false, "another compose file starts the VM anew: {answer}");
    let answers = after(answered(client, url, greeting)?);
    let id = answer["correlation_id"].as_str().context("an update has an operation")?;
    let operation = operation::watch(client, id, LIMIT, |_| ())?;
    done(&operation)?;
    let ends = step_ends(&operation)?;
    let over = ends.last().map_or(0.0, |(_, end)| after(*end));
    let steps = durations(ends.into_iter().map(|(name, end)| (name, after(end))));
    Ok(Updated { accepted, steps, over, answers })
}

/// Milliseconds from the request to stop the VM until the app answers again.
fn restart(client: &Client, cvm: &str, url: &str, greeting: &str) -> Result<f64> {
    let request = since_midnight()?;
    for verb in ["stop", "start"] {
        client.post(&format!("/api/v1/cvms/{cvm}/{verb}"), None)?.ok()?;
        if verb == "stop" {
            done(&operation::settle(client, cvm, LIMIT)?)?;
        }
    }
    let answers = answered(client, url, greeting)?;
    done(&operation::settle(client, cvm, LIMIT)?)?;
    Ok((answers - request).rem_euclid(DAY))
}

/// When the app first answered in these words.
fn answered(client: &Client, url: &str, words: &str) -> Result<f64> {
    until(LIMIT, &format!("the app says {words:?}"), || {
        let answer = client.send("GET", url, &[], None).ok().filter(|a| a.status == 200 && a.text.contains(words));
        answer.map(|_| since_midnight()).transpose()
    })
}

fn done(operation: &Value) -> Result<()> {
    ensure!(operation["status"] == "done", "the operation did not succeed: {operation}");
    Ok(())
}

/// When each step that was carried out ended, from the operation's events, in order.
fn step_ends(operation: &Value) -> Result<Vec<(String, f64)>> {
    let mut ends: Vec<(String, f64)> = Vec::new();
    for event in operation["events"].as_array().context("an operation has events")? {
        let (Some(step), Some(kind)) = (event["step"].as_str(), event["event_type"].as_str()) else { continue };
        if kind.ends_with(".end") {
            let at = event["timestamp"].as_str().and_then(time_of_day).context("an event has a time")?;
            ends.push((step.to_owned(), at));
        }
    }
    ensure!(!ends.is_empty(), "no step of the operation ended: {operation}");
    Ok(ends)
}

/// What passed between one end and the next; the first one is counted from the request.
fn durations(ends: impl Iterator<Item = (String, f64)>) -> Vec<(String, f64)> {
    let mut before = 0.0;
    ends.map(|(name, end)| (name, end - std::mem::replace(&mut before, end))).collect()
}

fn write(quick: bool, updates: &[Updated], restarts: Vec<f64>) -> Result<()> {
    let of = |pick: fn(&Updated) -> f64| Samples::new(updates.iter().map(pick).collect());
    let (accepted, over, answers) = (of(|u| u.accepted), of(|u| u.over), of(|u| u.answers));
    let restarts = Samples::new(restarts);
    let mut lines = vec![
        Line::ratio("compose update to the new app's answer", "ms", answers.median(), restarts.median()),
        Line::figure("of it, until the request is answered", "ms", accepted.median()),
    ];
    let mut steps = json!({});
    for (name, _) in updates.first().map_or(&[][..], |update| &update.steps) {
        let times = updates.iter().flat_map(|u| u.steps.iter().filter(|(n, _)| n == name).map(|(_, ms)| *ms));
        let times = Samples::new(times.collect());
        lines.push(Line::figure(format!("step {name}"), "ms", times.median()));
        steps[name] = times.json();
    }
    lines.push(Line::figure("request to the operation's end", "ms", over.median()));
    lines.push(Line::figure("the whole VM, stopped and started, to the app's answer", "ms", restarts.median()));
    let notes = format!(
        "\nMedians of {} updates of one real VM; slowest: {:.0} ms, of the whole VM {:.0} ms.\n",
        updates.len(),
        answers.percentile(100.0),
        restarts.percentile(100.0)
    );
    let samples = json!({
        "accepted": accepted.json(), "steps": steps, "over": over.json(), "answers": answers.json(),
        "whole_vm": restarts.json(),
    });
    let report =
        Report { name: "update", title: "Compose update", beside: "comparison", lines: &lines, notes, samples };
    report::publish(report, !quick).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_one_another() {
        let event = |kind: &str, step: Option<&str>, second: u32| json!({"event_type": kind, "step": step, "timestamp": format!("2026-01-31T00:00:{second:02}Z")});
        let operation = json!({"events": [
            event("instance.compose_update.start", None, 1),
            event("instance.compose_update.apply.start", Some("apply"), 1),
            event("instance.compose_update.apply.end", Some("apply"), 2),
            event("instance.compose_update.launch.start", Some("launch"), 2),
            event("instance.compose_update.launch.end", Some("launch"), 7),
            event("instance.compose_update.end", None, 7),
        ]});
        let ends = step_ends(&operation).unwrap();
        let steps = durations(ends.into_iter().map(|(name, at)| (name, at - 1000.0)));
        assert_eq!(steps, [("apply".to_owned(), 1000.0), ("launch".to_owned(), 5000.0)]);
        assert!(step_ends(&json!({"events": []})).is_err());
    }
}
