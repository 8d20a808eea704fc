//! Figure 1: whole operations per second. A create is six steps on a simulated VM, from `POST /cvms` to its last event.
//!
//! The one rule: the ceiling writes the rows of the very operations that were measured.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cloud::{Cloud, create};
use super::feed::Ends;
use super::rows::{Replay, With};
use super::{Bench, Line};
use crate::bench::accept::milliseconds;
use crate::bench::stats::Samples;

/// Operations at any moment.
const IN_FLIGHT: usize = 64;
const GOAL_RATIO: f64 = 0.5;
const AIM: f64 = 750.0;

pub struct Throughput {
    pub count: usize,
    /// Of each round; there are more CVMs in every next one.
    pub rates: Vec<f64>,
    // Medians of the rounds.
    pub per_second: f64,
    /// Milliseconds from request to last event.
    pub whole: Samples,
    /// Milliseconds of the server's processor time per operation.
    pub cpu_ms: f64,
    pub events: f64,
    pub decisions: f64,
    pub rows: f64,
    /// Commits that the server made per operation.
    pub commits: f64,
    /// Operations per second of the statements: with as many commits as the server made; 64 operations to a commit; one.
    pub alike: f64,
    pub grouped: f64,
    pub single: f64,
    /// As `grouped`, without audit rows.
    pub grouped_without_audit: f64,
}

pub fn measure(bench: &Bench) -> Result<Throughput> {
    let folder = bench.scratch("throughput")?;
    let (rounds, count) = if bench.quick { (3, 256) } else { (5, 768) };
    let mut cloud = Cloud::start(&bench.binary, &folder)?;
    let [mut rates, mut cpu, mut commits_each, mut alike] = [const { Vec::new() }; 4];
    let [mut grouped, mut single, mut without_audit] = [const { Vec::new() }; 3];
    let mut whole = Vec::new();
    let replay = bench.runtime.block_on(async {
        let ends = Ends::follow(&cloud.target).await?;
        cloud.cvms("warm", IN_FLIGHT, &ends).await?;
        let mut newest = None;
        // Server and statements in turn, because the time of a commit changes from minute to minute on some disks.
        for round in 0..rounds {
            let commits = cloud.provision(&format!("bench-{round}"), count).await?;
            let (start, before, committed) = (Instant::now(), cloud.cpu()?, cloud.commits().await?);
            whole.extend(creates(&cloud, commits, &ends).await?);
            rates.push(count as f64 / start.elapsed().as_secs_f64());
            cpu.push((cloud.cpu()? - before) * 1000.0 / count as f64);
            let committed = (cloud.commits().await? - committed) / count as f64;
            commits_each.push(committed);
            let replay = Replay::load(&folder.join("holdfast.db"), "create", count)?;
            let group = (replay.barriers() / committed).round().max(1.0) as usize;
            for (rates, group, audit) in [
                (&mut alike, group, true),
                (&mut grouped, IN_FLIGHT, true),
                (&mut single, 1, true),
                (&mut without_audit, IN_FLIGHT, false),
            ] {
                rates.push(replay.whole(&folder.join("ceiling.db"), group, With { audit, idempotency: false })?);
            }
            newest = Some(replay);
        }
        newest.context("no round was asked for")
    })?;
    cloud.server.stop()?;
    let median = |values: Vec<f64>| Samples::new(values).median();
    Ok(Throughput {
        count: rounds * count,
        per_second: median(rates.clone()),
        rates,
        whole: Samples::new(whole),
        cpu_ms: median(cpu),
        events: replay.events(),
        decisions: replay.decisions(),
        commits: median(commits_each),
        alike: median(alike),
        rows: replay.rows(),
        grouped: median(grouped),
        single: median(single),
        grouped_without_audit: median(without_audit),
    })
}

/// Milliseconds of each, from request to last event.
async fn creates(cloud: &Cloud, commits: VecDeque<Value>, ends: &Ends) -> Result<Vec<f64>> {
    let ends = ends.clone();
    let whole = cloud.each(IN_FLIGHT, commits, move |mut connection, commit| {
        let ends = ends.clone();
        async move {
            let start = Instant::now();
            let uuid = create(&mut connection, &commit).await?;
            ends.wait(&uuid).await?;
            Ok((connection, milliseconds(start)))
        }
    });
    whole.await
}

impl Throughput {
    pub fn lines(&self) -> Vec<Line> {
        vec![
            Line::at_least("creates per second, 64 in flight", "/s", self.per_second, AIM),
            Line::ratio("creates per second, against as many commits", "/s", self.per_second, self.alike)
                .at_least_ratio(GOAL_RATIO),
            Line::ratio("creates per second, against 64 to a commit", "/s", self.per_second, self.grouped),
            Line::ratio("creates per second, against one to a commit", "/s", self.per_second, self.single),
            Line::figure("create, request to last event, p50", "ms", self.whole.median()),
            Line::figure("create, request to last event, p99", "ms", self.whole.percentile(99.0)),
            Line::figure("server's processor time per create", "ms", self.cpu_ms),
            Line::figure("commits per create", "", self.commits),
        ]
    }
}
