//! `cargo xtask bench boot`: what a deployment costs, and how much of that is ours. `bench ops`: the folder `ops`.
//!
//! The one rule: every figure stands beside the same thing without us, measured in the same run, because the machines that
//! this runs on differ by half.

mod accept;
mod boot;
#[cfg(feature = "ops")]
mod ops;
mod plain;
mod report;
mod stats;

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

/// `bench ops` needs libraries that the other commands do not wait for, and a load generator must be fast: it runs in a
/// release build of this program that has them.
pub fn ops(words: &[&str]) -> Result<()> {
    #[cfg(feature = "ops")]
    return ops::run(words);
    #[cfg(not(feature = "ops"))]
    {
        let mut build = artifacts::cargo(&["build", "--release", "--package", "xtask", "--features", "ops"]);
        ui::run_quietly("build the load generator", &mut build)?;
        let mut command = std::process::Command::new(crate::target_dir().join("release/xtask"));
        ui::run_loudly("bench ops", command.args(["bench", "ops"]).args(words))
    }
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
