//! Figure 2: how long a mutation takes to be accepted, durably, while others run; and what an idempotency key adds.
//!
//! Eight clients stop and start CVMs, each its own, one after the other: a client asks again when its operation is over.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use hyper::Method;

use super::cloud::Cloud;
use super::feed::Ends;
use super::rows::{Replay, With};
use super::{Bench, Line};
use crate::bench::accept::milliseconds;
use crate::bench::stats::Samples;

const CLIENTS: usize = 8;
const GOAL_P50: f64 = 2.0;
const GOAL_P99: f64 = 15.0;

pub struct Accept {
    pub plain: Clients,
    pub with_key: Clients,
    /// The acceptance's statements and their commit alone, without the audit row, and with an idempotency key.
    pub statements: Samples,
    pub statements_without_audit: Samples,
    pub statements_with_key: Samples,
    /// `GET /healthz` with the same clients.
    pub request: Samples,
}

/// What eight clients saw.
pub struct Clients {
    /// Milliseconds until the answer.
    pub accept: Samples,
    /// Operations that they finished per second, together.
    pub per_second: f64,
}

pub fn measure(bench: &Bench) -> Result<Accept> {
    let folder = bench.scratch("accept")?;
    // Even, so that every CVM ends as it began.
    let rounds = if bench.quick { 60 } else { 400 };
    let mut cloud = Cloud::start(&bench.binary, &folder)?;
    let (plain, with_key, request) = bench.runtime.block_on(async {
        let ends = Ends::follow(&cloud.target).await?;
        let cvms = cloud.cvms("bench", CLIENTS, &ends).await?;
        power(&cloud, &cvms, &ends, 10, None).await?;
        let plain = power(&cloud, &cvms, &ends, rounds, None).await?;
        let with_key = power(&cloud, &cvms, &ends, rounds, Some("bench")).await?;
        let requests: VecDeque<()> = std::iter::repeat_n((), CLIENTS * rounds).collect();
        let request = cloud.each(CLIENTS, requests, |mut connection, ()| async move {
            let start = Instant::now();
            connection.get("/healthz").await?;
            Ok((connection, milliseconds(start)))
        });
        let request = request.await?;
        anyhow::Ok((plain, with_key, Samples::new(request)))
    })?;
    cloud.server.stop()?;
    let replay = Replay::load(&folder.join("holdfast.db"), "stop", 10_000)?;
    let statements = |with: With| anyhow::Ok(Samples::new(replay.accepts(&folder.join("ceiling.db"), with)?));
    Ok(Accept {
        plain,
        with_key,
        request,
        statements: statements(With { audit: true, idempotency: false })?,
        statements_without_audit: statements(With { audit: false, idempotency: false })?,
        statements_with_key: statements(With { audit: true, idempotency: true })?,
    })
}

async fn power(cloud: &Cloud, cvms: &[String], ends: &Ends, rounds: usize, key: Option<&str>) -> Result<Clients> {
    let (ends, key) = (ends.clone(), key.map(str::to_owned));
    let start = Instant::now();
    let times = cloud.each(CLIENTS, cvms.iter().cloned().collect(), move |mut connection, cvm| {
        let (ends, key) = (ends.clone(), key.clone());
        async move {
            let mut times = Vec::with_capacity(rounds);
            for round in 0..rounds {
                let verb = if round % 2 == 0 { "stop" } else { "start" };
                let path = format!("/api/v1/cvms/{cvm}/{verb}");
                let key = key.as_ref().map(|key| format!("{key}-{cvm}-{round}"));
                let headers: Vec<_> = key.iter().map(|key| ("idempotency-key", key.as_str())).collect();
                let start = Instant::now();
                connection.send(Method::POST, &path, &headers, Bytes::new()).await?;
                times.push(milliseconds(start));
                ends.wait(&cvm).await?;
            }
            Ok((connection, times))
        }
    });
    let times: Vec<f64> = times.await?.into_iter().flatten().collect();
    let per_second = times.len() as f64 / start.elapsed().as_secs_f64();
    Ok(Clients { accept: Samples::new(times), per_second })
}

impl Accept {
    pub fn lines(&self) -> Vec<Line> {
        let (ours, floor) = (&self.plain.accept, &self.statements);
        vec![
            Line::ratio("accept, 8 clients, p50", "ms", ours.median(), floor.median()).below(GOAL_P50),
            Line::ratio("accept, 8 clients, p99", "ms", ours.percentile(99.0), floor.percentile(99.0)).below(GOAL_P99),
            Line::figure("request without a transaction, 8 clients, p50", "ms", self.request.median()),
        ]
    }
}
