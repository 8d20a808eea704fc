//! Figure 2: how long a mutation takes to be accepted, durably, while others run; and what an idempotency key adds.
//!
//! Eight clients stop and start CVMs, each its own, one after the other: a client asks again when its operation is over.
//! Each has many, because a node tells of one CVM only a few times a second.

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
/// CVMs of each client.
const CVMS: usize = 32;
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
    let rounds = if bench.quick { 1 } else { 6 };
    let mut cloud = Cloud::start(&bench.binary, &folder)?;
    let (mut plain, mut with_key, mut request) = (Timed::default(), Timed::default(), Vec::new());
    let mut statements = [const { Vec::new() }; 3];
    bench.runtime.block_on(async {
        let ends = Ends::follow(&cloud.target).await?;
        let cvms = cloud.cvms("bench", CLIENTS * CVMS, &ends).await?;
        for verb in ["stop", "start"] {
            power(&cloud, &cvms, &ends, verb, None).await?;
        }
        // Clients and statements in turn, because the time of a commit changes from minute to minute on some disks.
        for round in 0..rounds {
            for (verb, key) in [("stop", false), ("start", true), ("stop", true), ("start", false)] {
                let prefix = key.then(|| format!("{round}-{verb}"));
                let timed = power(&cloud, &cvms, &ends, verb, prefix).await?;
                if key {
                    with_key.add(timed)
                } else {
                    plain.add(timed)
                }
                let replay = Replay::load(&folder.join("holdfast.db"), "power_off", cvms.len())?;
                for (all, more) in statements.iter_mut().zip(replay.accepts(&folder, WAYS)?) {
                    all.extend(more);
                }
            }
            let requests: VecDeque<()> = cvms.iter().map(|_| ()).collect();
            let times = cloud.each(CLIENTS, requests, |mut connection, ()| async move {
                let start = Instant::now();
                connection.get("/healthz").await?;
                Ok((connection, milliseconds(start)))
            });
            request.extend(times.await?);
        }
        anyhow::Ok(())
    })?;
    cloud.server.stop()?;
    let [statements, statements_without_audit, statements_with_key] = statements.map(Samples::new);
    let (plain, with_key, request) = (plain.clients(), with_key.clients(), Samples::new(request));
    Ok(Accept { plain, with_key, request, statements, statements_without_audit, statements_with_key })
}

/// As it is, without the audit row, with an idempotency key.
const WAYS: [With; 3] = [
    With { audit: true, idempotency: false },
    With { audit: false, idempotency: false },
    With { audit: true, idempotency: true },
];

#[derive(Default)]
struct Timed {
    times: Vec<f64>,
    seconds: f64,
}

impl Timed {
    fn add(&mut self, more: Self) {
        self.times.extend(more.times);
        self.seconds += more.seconds;
    }

    fn clients(self) -> Clients {
        Clients { per_second: self.times.len() as f64 / self.seconds, accept: Samples::new(self.times) }
    }
}

/// Stops or starts every CVM once. With `key` each request carries an idempotency key of its own.
async fn power(cloud: &Cloud, cvms: &[String], ends: &Ends, verb: &'static str, key: Option<String>) -> Result<Timed> {
    let ends = ends.clone();
    let start = Instant::now();
    let lanes = cvms.chunks(CVMS).map(<[String]>::to_vec).collect();
    let times = cloud.each(CLIENTS, lanes, move |mut connection, cvms| {
        let (ends, key) = (ends.clone(), key.clone());
        async move {
            let mut times = Vec::with_capacity(CVMS);
            for cvm in &cvms {
                let path = format!("/api/v1/cvms/{cvm}/{verb}");
                let key = key.as_ref().map(|key| format!("{key}-{cvm}"));
                let headers: Vec<_> = key.iter().map(|key| ("idempotency-key", key.as_str())).collect();
                let start = Instant::now();
                connection.send(Method::POST, &path, &headers, Bytes::new()).await?;
                times.push(milliseconds(start));
                ends.wait(cvm).await?;
            }
            Ok((connection, times))
        }
    });
    let times: Vec<f64> = times.await?.into_iter().flatten().collect();
    Ok(Timed { times, seconds: start.elapsed().as_secs_f64() })
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
