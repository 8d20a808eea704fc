//! `cargo xtask bench api`: how fast a server answers what is asked most of it, one CVM and a page of CVMs, when it has
//! 100,000 of them in 1,000 workspaces. `docs/performance.md` explains the figures.
//!
//! The one rule: each request is of another workspace than the one before it and of a CVM that nothing has warmed, and the
//! statements of the comparison are asked for the same ones, in turn with the server.

mod bare;
mod fill;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_harness::client::VERSION;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::accept::milliseconds;
use super::boot::megabytes;
use super::ops::cloud::Cloud;
use super::ops::history::mix;
use super::ops::http::{Connection, Target};
use super::ops::report::{self, Report};
use super::ops::{self, Bench, Line};
use super::stats::Samples;
use crate::ui;
use bare::Statements;
pub use fill::Many;

/// Kept connections, each of which asks again when it was answered.
const CLIENTS: usize = 8;
const PAGE: i64 = 30;
const GOAL_DETAILS: f64 = 8000.0;
const GOAL_PAGES: f64 = 2500.0;
const GOAL_P99: f64 = 10.0;
const GOAL_MEGABYTES: f64 = 120.0;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Details,
    Page,
}

/// Of one route.
#[derive(Default)]
struct Figures {
    /// Per second, of each round.
    rates: Vec<f64>,
    bare: Vec<f64>,
    /// Milliseconds of each request.
    times: Vec<f64>,
    /// Of one answer.
    bytes: usize,
    /// Microseconds of the server's processor time per request, of each round.
    cpu: Vec<f64>,
}

pub fn run(words: &[&str]) -> Result<()> {
    let quick = super::is_quick("api", words)?;
    let bench = Bench::new(ops::binary()?, quick)?;
    let many = if quick { Many { workspaces: 20, of_each: 100 } } else { Many { workspaces: 1000, of_each: 100 } };
    let (rounds, time) = if quick { (2, Duration::from_millis(500)) } else { (5, Duration::from_secs(4)) };
    ui::heading("A server with many CVMs");
    let folder = fill::kept(&bench, many)?;
    let mut cloud = Cloud::without_node(&bench.binary, &folder)?;
    let before = cloud.resident()?;
    let mut resident = before;
    let (mut details, mut pages) = (Figures::default(), Figures::default());
    bench.runtime.block_on(check(&cloud.target, many))?;
    ui::heading("Details and pages, in turn with the statements");
    for round in 0..=rounds {
        for (route, figures) in [(Route::Details, &mut details), (Route::Page, &mut pages)] {
            // Every round goes on where the one before it was.
            let seed = (round as u64) << 40;
            let (start, cpu) = (Instant::now(), cloud.cpu()?);
            let answered = bench.runtime.block_on(load(&cloud.target, many, route, seed, time))?;
            let (seconds, cpu) = (start.elapsed().as_secs_f64(), cloud.cpu()? - cpu);
            resident = resident.max(cloud.resident()?);
            let bare = Statements::rate(&folder.join("holdfast.db"), many, route, seed, time)?;
            let rate = answered.times.len() as f64 / seconds;
            ui::say(format!("  round {round}: {route:?}: {rate:.0}/s, the statements {bare:.0}/s"));
            figures.bytes = answered.bytes;
            // The first round only warms what a server has warm.
            if round > 0 {
                figures.rates.push(rate);
                figures.bare.push(bare);
                figures.cpu.push(cpu * 1e6 / answered.times.len() as f64);
                figures.times.extend(answered.times);
            }
        }
    }
    cloud.server.stop()?;
    write(&bench, many, &details, &pages, before, resident)
}

/// Holds one answer of each kind to what was filled in: a fast wrong answer is no figure.
async fn check(target: &Target, many: Many) -> Result<()> {
    let mut connection = Connection::open(target).await?;
    let number = many.count() - 1;
    let (key, uuid) = (many.key(many.workspace_of(number)), many.uuid(number));
    let path = |route| path(many, route, number);
    let detail: Value = serde_json::from_slice(&connection.get_as(&key, VERSION, &path(Route::Details)).await?)?;
    ensure!(detail["vm_uuid"] == uuid && detail["status"] == "running", "the details are of another CVM: {detail}");
    ensure!(detail["compose_file"]["name"] == detail["name"], "the compose file is of another CVM: {detail}");
    let page: Value = serde_json::from_slice(&connection.get_as(&key, VERSION, &path(Route::Page)).await?)?;
    let items = page["items"].as_array().context("a page has items")?;
    ensure!(items.len() as i64 == PAGE && page["total"] == many.of_each, "a page of {PAGE}: {page}");
    let same = |item: &Value| item["workspace"]["id"] == detail["workspace"]["id"];
    ensure!(items.iter().all(same), "a page shows another workspace's CVMs");
    ensure!(items[0]["vm_uuid"] == uuid, "the newest CVM is not the first");
    let nobody = connection.get_as("none", VERSION, &path(Route::Page)).await;
    ensure!(nobody.is_err(), "a key that does not exist was let in");
    Ok(())
}

fn path(many: Many, route: Route, number: i64) -> String {
    match route {
        Route::Details => format!("/api/v1/cvms/{}", many.uuid(number)),
        Route::Page => format!("/api/v1/cvms/paginated?page_size={PAGE}"),
    }
}

/// The CVM that is asked for the `turn`th time.
pub fn pick(many: Many, seed: u64, turn: u64) -> i64 {
    (mix(seed + turn) % many.count() as u64) as i64
}

#[derive(Default)]
struct Answered {
    times: Vec<f64>,
    bytes: usize,
}

/// Asks with all clients until the time is over.
async fn load(target: &Target, many: Many, route: Route, seed: u64, time: Duration) -> Result<Answered> {
    let mut clients = JoinSet::new();
    let end = Instant::now() + time;
    for client in 0..CLIENTS as u64 {
        let mut connection = Connection::open(target).await?;
        clients.spawn(async move {
            let mut answered = Answered::default();
            for turn in 0u64.. {
                let start = Instant::now();
                if start >= end {
                    break;
                }
                let number = pick(many, seed, turn * CLIENTS as u64 + client);
                let key = many.key(many.workspace_of(number));
                answered.bytes = connection.length_as(&key, VERSION, &path(many, route, number)).await?;
                answered.times.push(milliseconds(start));
            }
            anyhow::Ok(answered)
        });
    }
    let mut all = Answered::default();
    while let Some(answered) = clients.join_next().await {
        let Answered { times, bytes } = answered??;
        all.times.extend(times);
        all.bytes = bytes;
    }
    Ok(all)
}

fn write(bench: &Bench, many: Many, details: &Figures, pages: &Figures, before: u64, resident: u64) -> Result<()> {
    let median = |values: &[f64]| Samples::new(values.to_vec()).median();
    let rate =
        |name, of: &Figures, goal| Line::ratio(name, "/s", median(&of.rates), median(&of.bare)).no_less_than(goal);
    let (detail_times, page_times) = (Samples::new(details.times.clone()), Samples::new(pages.times.clone()));
    let lines = [
        rate("details of a CVM per second, 8 clients", details, GOAL_DETAILS),
        Line::figure("details of a CVM, p50", "ms", detail_times.median()),
        Line::figure("details of a CVM, p99", "ms", detail_times.percentile(99.0)).below(GOAL_P99),
        rate("pages of 30 CVMs per second, 8 clients", pages, GOAL_PAGES),
        Line::figure("page of 30 CVMs, p50", "ms", page_times.median()),
        Line::figure("page of 30 CVMs, p99", "ms", page_times.percentile(99.0)).below(GOAL_P99),
        Line::figure("resident memory of the server, largest", "MB", megabytes(resident)).below(GOAL_MEGABYTES),
    ];
    let notes = format!(
        "\n{} CVMs in {} workspaces on {} nodes. The details of a CVM are {:.1} KB of JSON, a page {:.1} KB. The server's processor \
         time: {:.0} us for details, {:.0} us for a page. Resident after the start: {:.1} MB.\n",
        many.count(),
        many.workspaces,
        many.nodes(),
        details.bytes as f64 / 1000.0,
        pages.bytes as f64 / 1000.0,
        median(&details.cpu),
        median(&pages.cpu),
        megabytes(before),
    );
    let samples = json!({"details": detail_times.json(), "page": page_times.json()});
    let report = Report { name: "api", title: "Reading CVMs", beside: "ceiling", lines: &lines, notes, samples };
    report::publish(report, !bench.quick).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_workspaces_are_asked() {
        let many = Many { workspaces: 20, of_each: 100 };
        let mut asked = vec![0; 20];
        for turn in 0..10_000 {
            let number = pick(many, 1 << 40, turn);
            assert!((0..2000).contains(&number));
            asked[many.workspace_of(number) as usize] += 1;
        }
        assert!(asked.iter().all(|times| (350..650).contains(times)), "{asked:?}");
    }
}
