//! `cargo xtask bench auth`: what it costs a request to be let in: its key is hashed, its holder and their role looked up, the
//! limits of the key and the table of roles asked.
//!
//! The one rule: the same route on the same connection, in turn with a key and without one. What differs is the look-up, and
//! the answer, which without a key is the longer one.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hyper::StatusCode;
use serde_json::json;

use super::accept::milliseconds;
use super::ops::cloud::Cloud;
use super::ops::http::Connection;
use super::ops::report::{self, Report};
use super::ops::{self, Bench, Line};
use super::stats::Samples;
use crate::ui;

/// It does nothing but to let its caller in.
const ROUTE: &str = "/api/v1/auth/authenticated";
/// Keys that take turns, so that no look-up finds only what the one before it left.
const KEYS: usize = 150;
/// Microseconds.
const GOAL: f64 = 100.0;

#[derive(Default)]
struct Figures {
    /// Milliseconds of each request.
    with: Vec<f64>,
    limited: Vec<f64>,
    wrong: Vec<f64>,
    without: Vec<f64>,
    /// Microseconds of the server's processor time per request, of each round.
    cpu_with: Vec<f64>,
    cpu_without: Vec<f64>,
}

pub fn run(words: &[&str]) -> Result<()> {
    let quick = super::is_quick("auth", words)?;
    let bench = Bench::new(ops::binary()?, quick)?;
    let (rounds, turns) = if quick { (2, 500) } else { (7, 5000) };
    let mut cloud = Cloud::without_node(&bench.binary, &bench.scratch("auth")?)?;
    ui::heading("With a key and without one, in turn");
    let mut figures = Figures::default();
    let keys = bench.runtime.block_on(keys(&cloud, json!({})))?;
    let limits = json!({ "scopes": ["read", "own"], "source_ip_rule": { "allowed": ["127.0.0.0/8", "10.0.0.0/8"] } });
    let limited = bench.runtime.block_on(self::keys(&cloud, limits))?;
    for round in 0..=rounds {
        let warm = round == 0;
        let mut own = Figures::default();
        bench.runtime.block_on(in_turn(&cloud, &keys, &limited, turns, &mut own))?;
        let (with, without) = (cpu(&bench, &cloud, &keys, turns)?, cpu(&bench, &cloud, &[String::new()], turns)?);
        ui::say(format!("  round {round}: processor time {with:.0} us with a key, {without:.0} us without"));
        // The first round only warms what a server has warm.
        if !warm {
            figures.with.append(&mut own.with);
            figures.limited.append(&mut own.limited);
            figures.wrong.append(&mut own.wrong);
            figures.without.append(&mut own.without);
            figures.cpu_with.push(with);
            figures.cpu_without.push(without);
        }
    }
    cloud.server.stop()?;
    write(&bench, figures)
}

async fn keys(cloud: &Cloud, limits: serde_json::Value) -> Result<Vec<String>> {
    let mut connection = Connection::open(&cloud.target).await?;
    let mut keys = Vec::with_capacity(KEYS / 2);
    for number in 0..KEYS / 2 {
        let mut body = limits.clone();
        body["name"] = format!("bench-{number}").into();
        let made = connection.post("/api/v1/tokens", &body).await?;
        keys.push(made["token"].as_str().context("a token has a secret")?.to_owned());
    }
    Ok(keys)
}

async fn in_turn(
    cloud: &Cloud,
    keys: &[String],
    limited: &[String],
    turns: usize,
    figures: &mut Figures,
) -> Result<()> {
    let mut connection = Connection::open(&cloud.target).await?;
    for turn in 0..turns {
        let wrong = format!("phak_{turn}");
        let kinds = [
            (keys[turn % keys.len()].as_str(), StatusCode::OK, &mut figures.with),
            (limited[turn % limited.len()].as_str(), StatusCode::OK, &mut figures.limited),
            (wrong.as_str(), StatusCode::UNAUTHORIZED, &mut figures.wrong),
            ("", StatusCode::UNAUTHORIZED, &mut figures.without),
        ];
        for (key, due, times) in kinds {
            let start = Instant::now();
            let status = connection.status_as(key, ROUTE).await?;
            times.push(milliseconds(start));
            ensure!(status == due, "{ROUTE} was answered with {status} where {due} was due");
        }
    }
    Ok(())
}

/// Microseconds of the server's processor time per request.
fn cpu(bench: &Bench, cloud: &Cloud, keys: &[String], turns: usize) -> Result<f64> {
    let before = cloud.cpu()?;
    bench.runtime.block_on(async {
        let mut connection = Connection::open(&cloud.target).await?;
        for turn in 0..turns {
            connection.status_as(&keys[turn % keys.len()], ROUTE).await?;
        }
        anyhow::Ok(())
    })?;
    Ok((cloud.cpu()? - before) * 1e6 / turns as f64)
}

fn write(bench: &Bench, figures: Figures) -> Result<()> {
    let [with, limited, wrong, without] =
        [figures.with, figures.limited, figures.wrong, figures.without].map(Samples::new);
    let cpu = |values: Vec<f64>| Samples::new(values).median();
    let (cpu_with, cpu_without) = (cpu(figures.cpu_with), cpu(figures.cpu_without));
    let us = |samples: &Samples| samples.median() * 1000.0;
    let lines = [
        Line::figure("to let a request in, p50 with a key less p50 without", "us", us(&with) - us(&without))
            .below(GOAL),
        Line::figure("the same with a key that has scopes and addresses", "us", us(&limited) - us(&without))
            .below(GOAL),
        Line::figure("the server's processor time for it", "us", cpu_with - cpu_without).below(GOAL),
        Line::ratio("request with a key, p50", "us", us(&with), us(&without)),
        Line::ratio("request with a wrong key, p50", "us", us(&wrong), us(&without)),
        Line::ratio("processor time of a request with a key", "us", cpu_with, cpu_without),
    ];
    let notes = format!(
        "\nMedians of {} requests of each kind to `{ROUTE}` on one connection, in turn; p99 with a key {:.0} us, without {:.0} us.\n",
        with.count(),
        with.percentile(99.0) * 1000.0,
        without.percentile(99.0) * 1000.0,
    );
    let samples = json!({
        "with_key": with.json(), "limited_key": limited.json(), "wrong_key": wrong.json(), "without_key": without.json(),
    });
    let report =
        Report { name: "auth", title: "Letting a request in", beside: "without a key", lines: &lines, notes, samples };
    report::publish(report, !bench.quick).map(drop)
}
