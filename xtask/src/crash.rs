//! `cargo xtask crash`: the server is stopped dead at every commit and every effect, started again and checked.
//!
//! The one rule: the binary with the points in it is used for nothing else. It is built beside the others, in the fast
//! build, and copied away, so that the next plain build brings back one without them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::artifacts::{self, cargo};
use crate::{packages, target_dir, ui};

/// `words`: `--plan NAME`, and with it `--point POINT --hit N` for one case.
pub fn run(words: &[&str]) -> Result<()> {
    packages::install(&[packages::RUN])?;
    let binary = binary()?;
    ui::run_quietly("build the crash test", &mut cargo(&["build", "-p", "holdfast-e2e", "--bin", "crash"]))?;
    let mut command = Command::new(target_dir().join("debug/crash"));
    command.args(words).env("HOLDFAST_BIN", binary).env("RUST_BACKTRACE", "0");
    ui::run_loudly("crash", &mut command)
}

fn binary() -> Result<PathBuf> {
    let agent = artifacts::guest_agent()?;
    let mut build = cargo(&["build", "-p", "holdfast", "--bin", "holdfast", "--features", "failpoints"]);
    ui::run_quietly("build holdfast with failpoints", build.env("HOLDFAST_GUEST_AGENT", agent))?;
    let folder = target_dir().join("crash");
    std::fs::create_dir_all(&folder)?;
    let (built, kept) = (target_dir().join("debug/holdfast"), folder.join("holdfast"));
    // Under another name first: a copy that is being run cannot be written to.
    let unfinished = folder.join("holdfast.new");
    std::fs::copy(&built, &unfinished).with_context(|| format!("copy {}", built.display()))?;
    std::fs::rename(unfinished, &kept)?;
    artifacts::image(&kept)?;
    Ok(kept)
}
