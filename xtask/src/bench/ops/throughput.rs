//! Figure 1: whole operations per second. A create is six steps on a simulated VM, from `POST /cvms` to its last event.
//!
//! The one rule: the ceiling writes the rows of the very operations that were measured.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

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
    pub per_second: f64,
    /// Milliseconds from request to last event.
    pub whole: Samples,
    /// Milliseconds of the server's processor time per operation.
    pub cpu_ms: f64,
    pub events: f64,
    pub decisions: f64,
    pub rows: f64,
    /// Operations per second of the statements: 64 operations to a commit; one.
    pub grouped: f64,
    pub single: f64,
    /// As `grouped`, without audit rows.
    pub grouped_without_audit: f64,
}

pub fn measure(bench: &Bench) -> Result<Throughput> {
    let folder = bench.scratch("throughput")?;
    let count = if bench.quick { 600 } else { 4000 };
    let mut cloud = Cloud::start(&bench.binary, &folder)?;
    let (per_second, whole, cpu_ms) = bench.runtime.block_on(async {
        let ends = Ends::follow(&cloud.target).await?;
        cloud.cvms("warm", IN_FLIGHT, &ends).await?;
        let commits = cloud.provision("bench", count).await?;
        let (start, cpu) = (Instant::now(), cloud.cpu()?);
        let whole = cloud.each(IN_FLIGHT, commits, move |mut connection, commit| {
            let ends = ends.clone();
            async move {
                let start = Instant::now();
                let uuid = create(&mut connection, &commit).await?;
                ends.wait(&uuid).await?;
                Ok((connection, milliseconds(start)))
            }
        });
        let whole = whole.await?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu_ms = (cloud.cpu()? - cpu) * 1000.0 / count as f64;
        anyhow::Ok((count as f64 / seconds, Samples::new(whole), cpu_ms))
    })?;
    cloud.server.stop()?;
    let replay = Replay::load(&folder.join("holdfast.db"), "create", count)?;
    let ceiling = |group: usize, audit: bool| ceiling(&replay, &folder, group, audit);
    Ok(Throughput {
        count,
        per_second,
        whole,
        cpu_ms,
        events: replay.events(),
        decisions: replay.decisions(),
        rows: replay.rows(),
        grouped: ceiling(IN_FLIGHT, true)?,
        single: ceiling(1, true)?,
        grouped_without_audit: ceiling(IN_FLIGHT, false)?,
    })
}

fn ceiling(replay: &Replay, folder: &Path, group: usize, audit: bool) -> Result<f64> {
    replay.whole(&folder.join("ceiling.db"), group, With { audit, idempotency: false })
}

impl Throughput {
    pub fn lines(&self) -> Vec<Line> {
        vec![
            Line::at_least("creates per second, 64 in flight", "/s", self.per_second, AIM),
            Line::ratio("creates per second, against 64 to a commit", "/s", self.per_second, self.grouped)
                .at_least_ratio(GOAL_RATIO),
            Line::ratio("creates per second, against one to a commit", "/s", self.per_second, self.single),
            Line::figure("create, request to last event, p50", "ms", self.whole.median()),
            Line::figure("create, request to last event, p99", "ms", self.whole.percentile(99.0)),
            Line::figure("server's processor time per create", "ms", self.cpu_ms),
        ]
    }
}
