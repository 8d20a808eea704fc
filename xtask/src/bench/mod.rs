//! `cargo xtask bench boot`: what a deployment costs, and how much of that is ours. `bench ops`, `api`, `auth`, `update`,
//! `logs` and `webhooks`: the modules of these names.
//!
//! The one rule: every figure stands beside the same thing without us, measured in the same run, because the machines that
//! this runs on differ by half.

mod accept;
#[cfg(feature = "ops")]
mod api;
#[cfg(feature = "ops")]
mod auth;
mod boot;
#[cfg(feature = "ops")]
mod logs;
#[cfg(feature = "ops")]
mod ops;
mod plain;
mod report;
mod stats;
#[cfg(feature = "ops")]
mod update;
#[cfg(feature = "ops")]
mod webhooks;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::artifacts::{self, Build};
use crate::{packages, ui};

pub fn run(words: &[&str]) -> Result<()> {
    let runs = match words {
        [] => 5,
        ["--runs", n] => n.parse::<usize>().ok().filter(|n| (1..=50).contains(n)).context("--runs: 1 to 50")?,
        _ => bail!("bench boot has one option: --runs N"),
    };
    packages::install(&[packages::RUN])?;
    ui::heading("Build");
    let binary = artifacts::all(Build::Release)?;
    let folder = Scratch::new()?;
    ui::heading("Accept of a mutation (simulated VMs)");
    let accept = accept::measure(&binary, &folder.0.join("accept"))?;
    ui::heading("Idle server, then boots (real VMs)");
    let boots = boot::measure(&binary, &folder.0.join("boot"), runs)?;
    report::write(&accept, &boots)
}

/// `bench ops` and its like need libraries that the other commands do not wait for, and a load generator must be fast: they
/// run in a release build of this program that has them.
pub fn loaded(name: &str, words: &[&str]) -> Result<()> {
    #[cfg(feature = "ops")]
    return match name {
        "api" => api::run(words),
        "auth" => auth::run(words),
        "logs" => logs::run(words),
        "update" => update::run(words),
        "webhooks" => webhooks::run(words),
        _ => ops::run(words),
    };
    #[cfg(not(feature = "ops"))]
    {
        let mut build = artifacts::cargo(&["build", "--release", "--package", "xtask", "--features", "ops"]);
        ui::run_quietly("build the load generator", &mut build)?;
        let mut command = std::process::Command::new(crate::target_dir().join("release/xtask"));
        ui::run_loudly(&format!("bench {name}"), command.args(["bench", name]).args(words))
    }
}

/// Whether the only option of a benchmark is there.
#[cfg(feature = "ops")]
fn is_quick(name: &str, words: &[&str]) -> Result<bool> {
    match words {
        [] => Ok(false),
        ["--quick"] => Ok(true),
        _ => bail!("bench {name} has one option: --quick"),
    }
}

/// The binary to measure with real VMs, and all that these need.
#[cfg(feature = "ops")]
fn with_vms() -> Result<PathBuf> {
    packages::install(&[packages::RUN])?;
    let binary = ops::binary()?;
    artifacts::image(&binary)?;
    Ok(binary)
}

/// A folder that goes away with this value. Its name is short, because it holds the paths of unix sockets.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("hf-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        holdfast_harness::process::kill_vms(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}
