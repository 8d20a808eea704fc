//! `cargo xtask bench ops`: how fast operations are accepted, carried out, listed and watched, and how far that is from
//! what the database alone could do. `docs/performance.md` explains the figures.
//!
//! The one rule: a real server process is asked over HTTP, and each figure's ceiling is taken in the same run on the same
//! disk: the same rows, schema, indexes and pragmas, by plain prepared statements.

mod accept;
pub mod cloud;
mod cost;
mod disk;
pub mod feed;
pub mod history;
pub mod http;
mod list;
mod plot;
pub mod report;
mod rows;
mod seal;
mod throughput;
mod watch;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

pub use list::read_all;
pub use report::Line;

use crate::artifacts::{self, Build};
use crate::{target_dir, ui};

const FIGURES: [&str; 5] = ["throughput", "accept", "list", "watch", "chain"];

/// What every figure is measured with.
pub struct Bench {
    pub binary: PathBuf,
    pub quick: bool,
    /// Where generated databases are kept.
    pub cache: PathBuf,
    /// Goes away with this value.
    scratch: PathBuf,
    /// One thread: the load generator leaves the rest of the machine to the server.
    pub runtime: Runtime,
}

#[derive(Default)]
pub struct Results {
    /// Milliseconds of an fdatasync of one page, before and after the figures.
    disk: Vec<f64>,
    throughput: Option<throughput::Throughput>,
    accept: Option<accept::Accept>,
    list: Option<list::List>,
    watch: Option<watch::Watch>,
    seal: Option<seal::Seal>,
}

pub fn run(words: &[&str]) -> Result<()> {
    let (quick, only) = options(words)?;
    let bench = Bench::new(binary()?, quick)?;
    let wants = |figure: &str| only.is_none_or(|only| only == figure);
    let mut results = Results { disk: disk::syncs(&bench)?, ..Results::default() };
    if wants("throughput") {
        ui::heading("Whole operations, 64 in flight");
        results.throughput = Some(throughput::measure(&bench)?);
    }
    if wants("accept") {
        ui::heading("Acceptance, 8 clients");
        results.accept = Some(accept::measure(&bench)?);
    }
    if wants("watch") {
        ui::heading("1,000 watchers");
        results.watch = Some(watch::measure(&bench)?);
    }
    if wants("list") || wants("chain") {
        ui::heading("A long past");
        let template = history::Template::make(&bench)?;
        if wants("chain") {
            results.seal = Some(seal::measure(&bench, &template)?);
        }
        if wants("list") {
            results.list = Some(list::measure(&bench, &template)?);
        }
    }
    results.disk.extend(disk::syncs(&bench)?);
    report::write(&bench, &results)
}

/// The binary that `HOLDFAST_BIN` names, else the one that this source makes.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        return Ok(PathBuf::from(path));
    }
    ui::heading("Build");
    artifacts::binary(Build::Release, &artifacts::guest_agent()?)
}

fn options<'a>(words: &[&'a str]) -> Result<(bool, Option<&'a str>)> {
    match words {
        [] => Ok((false, None)),
        ["--quick"] => Ok((true, None)),
        ["--only", figure] if FIGURES.contains(figure) => Ok((false, Some(figure))),
        ["--quick", "--only", figure] | ["--only", figure, "--quick"] if FIGURES.contains(figure) => {
            Ok((true, Some(figure)))
        }
        _ => bail!("cargo xtask bench ops [--quick] [--only {}]", FIGURES.join("|")),
    }
}

impl Bench {
    pub fn new(binary: PathBuf, quick: bool) -> Result<Self> {
        // Beside the build, because a folder for temporary files may be memory, where nothing has to become durable.
        let cache = target_dir().join("bench-cache");
        let scratch = cache.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { binary, quick, cache, scratch, runtime })
    }

    /// A path in a folder that goes away after the run.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.scratch.join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

impl Results {
    fn is_whole(&self) -> bool {
        self.throughput.is_some()
            && self.accept.is_some()
            && self.list.is_some()
            && self.watch.is_some()
            && self.seal.is_some()
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        lines.extend(self.throughput.iter().flat_map(throughput::Throughput::lines));
        lines.extend(self.accept.iter().flat_map(accept::Accept::lines));
        lines.extend(self.list.iter().flat_map(list::List::lines));
        lines.extend(self.watch.iter().flat_map(watch::Watch::lines));
        lines.extend(self.seal.iter().flat_map(seal::Seal::lines));
        lines.extend(cost::lines(self));
        lines
    }
}
