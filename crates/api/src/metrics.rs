//! `GET /metrics`: what an operator watches, in the text format of Prometheus. `docs/metrics.md` names every metric.
//!
//! The one rule: counts and times only. Anybody who reaches the port may read them, so no metric names a tenant, a
//! resource or an address, and none holds a secret.

use std::sync::atomic::AtomicU64;

use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_control::metrics::{Histograms, Labels, short};
use holdfast_model::error::Error;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::App;
use crate::error::Failure;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Always written, also when nothing has the status: an alert on a series that is missing never fires.
const STATUSES: [&str; 3] = ["pending", "running", "stuck"];
const NODE_STATES: [&str; 5] = ["online", "not_ready", "maintenance", "offline", "revoked"];

/// What the HTTP server counts of its requests.
#[derive(Debug, Clone)]
pub struct Http {
    requests: Family<Labels<3>, Counter>,
    duration: Histograms<2>,
}

impl Default for Http {
    fn default() -> Self {
        Self { requests: Family::default(), duration: Family::new_with_constructor(short) }
    }
}

/// The outermost layer: counts every answer, and times those that are sent as soon as they can be.
pub async fn layer(State(http): State<Http>, request: Request, next: Next) -> Response {
    let (surface, method) = (surface(request.uri().path()), method(request.method()));
    let waits = surface == "node" || request.uri().path().ends_with("/wait");
    let began = Instant::now();
    let response = next.run(request).await;
    let class = match response.status().as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    http.requests.get_or_create(&[("surface", surface), ("method", method), ("status", class)]).inc();
    if !waits {
        let took = began.elapsed().as_secs_f64();
        http.duration.get_or_create(&[("surface", surface), ("method", method)]).observe(took);
    }
    response
}

fn surface(path: &str) -> &'static str {
    let known = [("/api/", "phala"), ("/v1/", "nirvana"), ("/holdfast/", "holdfast"), ("/node/", "node")];
    known.into_iter().find(|(prefix, _)| path.starts_with(prefix)).map_or("other", |(_, name)| name)
}

/// A method may be any word; only those that we know are told apart.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The scrape. Without its database the server has nothing true to say of operations, so it answers 503 then, and the
/// scraper's own `up` is 0.
pub async fn scrape(State((app, http)): State<(App, Http)>) -> Result<Response, Failure> {
    let counts = app.control.store.counts(app.control.node_patience(), app.control.now()).await?;
    let mut registry = Registry::default();
    let operations = gauges("status", &STATUSES, &counts.operations);
    registry.register("holdfast_operations", "Operations that are not over", operations);
    app.control.metrics.register(&mut registry);
    registry.register("holdfast_http_requests", "Answers sent", http.requests.clone());
    let help = "From a request's head to its answer's; without requests that wait for news";
    registry.register_with_unit("holdfast_http_request_duration", help, Unit::Seconds, http.duration.clone());
    registry.register("holdfast_nodes", "Nodes by state", gauges("state", &NODE_STATES, &counts.nodes));
    registry.register(
        "holdfast_events_unsealed",
        "Committed events that are not in the signed chain yet",
        gauge(counts.events_unsealed),
    );
    let commits = ConstCounter::new(app.control.store.commits());
    registry.register(
        "holdfast_database_commits",
        "Commits of the database; transactions that queue share one",
        commits,
    );
    registry.register("holdfast_build", "The version that runs", Info::new([("version", holdfast_model::VERSION)]));
    if let Some(bytes) = resident_memory() {
        let memory: Gauge<u64, AtomicU64> = Gauge::default();
        memory.set(bytes);
        registry.register_with_unit("process_resident_memory", "Memory of the process", Unit::Bytes, memory);
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_err(Error::internal)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn gauge(value: i64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// One gauge per word, 0 for those that were not counted.
fn gauges(label: &'static str, words: &[&'static str], counted: &[(String, i64)]) -> Family<Labels<1>, Gauge> {
    let family = Family::<Labels<1>, Gauge>::default();
    for word in words {
        let count = counted.iter().find(|(name, _)| name == word).map_or(0, |(_, count)| *count);
        family.get_or_create(&[(label, *word)]).set(count);
    }
    family
}

/// `None` where the kernel does not say.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Routes of the metrics, with what they count.
pub fn routes(app: App, http: Http) -> axum::Router<App> {
    axum::Router::new().route("/metrics", axum::routing::get(scrape).with_state((app, http)))
}
