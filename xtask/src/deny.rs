//! Licences, sources and advisories of what we depend on.
//!
//! The one rule: only the advisory database may be out of reach; then the answer is "not checked", never "fine".

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::parts::Outcome;
use crate::{artifacts, packages, root, target_dir, ui};

/// Any later version does too; this one is installed when there is none.
const VERSION: &str = "0.20.2";

pub fn policy() -> Result<Outcome> {
    let mut command = deny()?;
    command.args(["--workspace", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    ui::run_quietly("licences, bans and sources", &mut command)?;
    Ok(Outcome::Passed)
}

pub fn advisories() -> Result<Outcome> {
    let output = deny()?.args(["--workspace", "check", "advisories"]).output()?;
    if output.status.success() {
        return Ok(Outcome::Passed);
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.contains("failed to fetch advisory database") || text.contains("failed to clone") {
        return Ok(Outcome::Skipped("the advisory database cannot be reached from here".to_owned()));
    }
    bail!("{text}")
}

fn deny() -> Result<Command> {
    let program = installed()?;
    let mut command = Command::new(program);
    command.current_dir(root());
    Ok(command)
}

fn installed() -> Result<PathBuf> {
    let own = target_dir().join("tools");
    let program = own.join("bin").join("cargo-deny");
    if let Some(found) = packages::find("cargo-deny") {
        return Ok(found);
    }
    if !program.is_file() {
        // Unoptimized: it runs for seconds and would compile for minutes.
        let args = ["install", "--locked", "--debug", "cargo-deny", "--version", VERSION, "--root"];
        ui::run_quietly("install cargo-deny", artifacts::cargo(&args).arg(own))?;
    }
    Ok(program)
}
