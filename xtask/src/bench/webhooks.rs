//! `cargo xtask bench webhooks`: deliveries per second to a receiver that answers at once, and how long after its commit an
//! event is there.
//!
//! The one rule: what posting costs by itself is measured in the same run: the same bodies, the same client library, as many
//! requests at once, to the same receiver. The rest of the way (reading events, signing, writing down what became of each)
//! is ours.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_harness::server::{Options, Server};
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::boot::{since_midnight, time_of_day};
use super::is_quick;
use super::ops::cloud::Cloud;
use super::ops::feed::Ends;
use super::ops::http::{Connection, Target};
use super::ops::report::{self, Report};
use super::ops::{Bench, Line, binary};
use super::stats::Samples;
use crate::ui;

const GOAL_RATE: f64 = 2000.0;
const GOAL_P99: f64 = 200.0;
/// Attempts that the server makes at once to a receiver that answers quickly.
const AT_ONCE: usize = 16;
/// Between two operations while the lag is measured.
const PACE: Duration = Duration::from_millis(50);
/// Deliveries that are not there by then are lost.
const LIMIT: Duration = Duration::from_secs(120);
const EVENTS: [&str; 6] =
    ["cvm.created", "cvm.started", "cvm.stopped", "operation.accepted", "operation.succeeded", "operation.failed"];

/// A delivery as it arrived.
struct Got {
    /// Milliseconds since midnight.
    at: f64,
    body: String,
}

#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Got>>>);

impl Receiver {
    /// In a thread and a runtime of its own.
    fn start() -> Result<(Self, String)> {
        let receiver = Self::default();
        let shared = receiver.clone();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                while let Ok((stream, _)) = listener.accept().await {
                    let receiver = shared.clone();
                    tokio::spawn(async move { receiver.serve(stream).await });
                }
            });
        });
        Ok((receiver, address))
    }

    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut buffer = Vec::with_capacity(8192);
        loop {
            let (head, length) = loop {
                if let Some(request) = whole(&buffer) {
                    break request;
                }
                if stream.read_buf(&mut buffer).await.ok()? == 0 {
                    return None;
                }
            };
            let body = String::from_utf8_lossy(&buffer[head..head + length]).into_owned();
            buffer.drain(..head + length);
            self.lock().push(Got { at: since_midnight().ok()?, body });
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Got>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<Got> {
        std::mem::take(&mut self.lock())
    }

    async fn wait(&self, count: usize) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while self.lock().len() < count {
            ensure!(Instant::now() < end, "{} of {count} deliveries arrived", self.lock().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// Lengths of head and body of the request at the beginning of the buffer, when all of it is there.
fn whole(buffer: &[u8]) -> Option<(usize, usize)> {
    let head = buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&buffer[..head]).ok()?.to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse().ok()?;
    (buffer.len() >= head + length).then_some((head, length))
}

struct Measured {
    /// Deliveries per second of each round, and the same bodies posted without us.
    rates: Vec<f64>,
    bare: Vec<f64>,
    deliveries: usize,
    lag: Samples,
}

pub fn run(words: &[&str]) -> Result<()> {
    let quick = is_quick("webhooks", words)?;
    let bench = Bench::new(binary()?, quick)?;
    let (cvms, rounds, operations) = if quick { (50, 1, 20) } else { (1000, 5, 300) };
    let folder = bench.scratch("webhooks")?;
    let (receiver, address) = Receiver::start()?;
    ui::heading("CVMs whose events are told");
    let mut options =
        Options::new(&bench.binary, &folder).args(["--hypervisor", "simulated", "--simulated-step-ms", "0"]);
    let allow = [("HOLDFAST_WEBHOOK_NETWORKS", "127.0.0.0/8"), ("HOLDFAST_WEBHOOK_HTTP", "true")];
    options.env = allow.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut cloud = Cloud::of(Server::start(options)?)?;
    let uuids = bench.runtime.block_on(async {
        let ends = Ends::follow(&cloud.target).await?;
        cloud.cvms("told", cvms, &ends).await
    })?;
    let url = format!("http://{address}/hook");
    bench.runtime.block_on(create(&cloud.target, &url))?;
    ui::heading("A backlog, delivered; and the same bodies, posted");
    let deliveries = cvms * 4;
    let (mut rates, mut bare) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        cloud.server.stop()?;
        rewind(&folder)?;
        receiver.take();
        cloud.server.restart()?;
        bench.runtime.block_on(receiver.wait(deliveries))?;
        let got = receiver.take();
        rates.push(rate(&got)?);
        let bodies: Vec<String> = got.into_iter().map(|got| got.body).collect();
        bench.runtime.block_on(post(&url, bodies))?;
        bare.push(rate(&receiver.take())?);
        ui::say(format!("  round {round}: {:.0} per second, posted {:.0}", rates[round - 1], bare[round - 1]));
    }
    ui::heading("Lag behind commits");
    let lag = bench.runtime.block_on(lag(&cloud, &receiver, &uuids[0], operations))?;
    cloud.server.stop()?;
    write(quick, &Measured { rates, bare, deliveries, lag })
}

async fn create(target: &Target, url: &str) -> Result<()> {
    let body = json!({ "url": url, "events": EVENTS });
    Connection::open(target).await?.post("/api/v1/workspace/webhooks", &body).await.map(drop)
}

/// Lets the webhook begin with the first event again.
fn rewind(folder: &Path) -> Result<()> {
    let database = rusqlite::Connection::open(folder.join("holdfast.db"))?;
    database.execute_batch("DELETE FROM webhook_delivery; UPDATE webhook SET position = 0;")?;
    Ok(())
}

/// Per second, from the first arrival to the last.
fn rate(got: &[Got]) -> Result<f64> {
    let (first, last) = (got.first().context("nothing arrived")?, got.last().context("nothing arrived")?);
    Ok((got.len() - 1) as f64 / ((last.at - first.at) / 1000.0).max(0.001))
}

/// Posts the bodies as the server does, with as many requests at once.
async fn post(url: &str, bodies: Vec<String>) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().http1_only().tcp_nodelay(true).build()?;
    let bodies = Arc::new(Mutex::new(VecDeque::from(bodies)));
    let lanes = (0..AT_ONCE).map(|_| {
        let (client, bodies, url) = (client.clone(), bodies.clone(), url.to_owned());
        tokio::spawn(async move {
            loop {
                let next = bodies.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(body) = next else { return anyhow::Ok(()) };
                let sent = client.post(&url).header("content-type", "application/json").body(body).send().await?;
                sent.error_for_status()?.bytes().await?;
            }
        })
    });
    for lane in lanes.collect::<Vec<_>>() {
        lane.await??;
    }
    Ok(())
}

/// Milliseconds from each event's own time, which is taken before its commit, to its arrival.
async fn lag(cloud: &Cloud, receiver: &Receiver, cvm: &str, operations: usize) -> Result<Samples> {
    let ends = Ends::follow(&cloud.target).await?;
    let mut connection = Connection::open(&cloud.target).await?;
    let mut pace = tokio::time::interval(PACE);
    receiver.take();
    let mut expected = 0;
    for turn in 0..operations {
        pace.tick().await;
        let verb = if turn % 2 == 0 { "stop" } else { "start" };
        connection.send(Method::POST, &format!("/api/v1/cvms/{cvm}/{verb}"), &[], bytes::Bytes::new()).await?;
        ends.wait(cvm).await?;
        expected += 3;
    }
    receiver.wait(expected).await?;
    let lag = receiver.take().into_iter().map(|got| {
        let body: Value = serde_json::from_str(&got.body)?;
        let happened = body["created_at"].as_str().and_then(time_of_day).context("a delivery has a time")?;
        anyhow::Ok((got.at - happened).rem_euclid(86_400_000.0))
    });
    Ok(Samples::new(lag.collect::<Result<_>>()?))
}

fn write(quick: bool, measured: &Measured) -> Result<()> {
    let Measured { rates, bare, deliveries, lag } = measured;
    let (rate, posted) = (Samples::new(rates.clone()).median(), Samples::new(bare.clone()).median());
    let lines = [
        Line::ratio("deliveries per second", "/s", rate, posted).no_less_than(GOAL_RATE),
        Line::figure("commit to receiver, p50", "ms", lag.median()),
        Line::figure("commit to receiver, p99", "ms", lag.percentile(99.0)).below(GOAL_P99),
    ];
    let each = |rates: &[f64]| rates.iter().map(|rate| format!("{rate:.0}")).collect::<Vec<_>>().join(", ");
    let notes = format!(
        "\nEach round is a backlog of {deliveries} events for one endpoint. Per second in each round: {}; posted without \
         the server: {}. The lag is that of {} deliveries.\n",
        each(rates),
        each(bare),
        lag.count()
    );
    let report = Report {
        name: "webhooks",
        title: "Webhooks",
        beside: "comparison",
        lines: &lines,
        notes,
        samples: json!({ "lag": lag.json() }),
    };
    report::publish(report, !quick).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_or_not_there_yet() {
        let request = b"POST /hook HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyPOST";
        assert_eq!(whole(request), Some((request.len() - 8, 4)));
        assert_eq!(whole(&request[..request.len() - 5]), None);
        assert_eq!(whole(b"POST /hook HTTP/1.1\r\n"), None);
    }
}
