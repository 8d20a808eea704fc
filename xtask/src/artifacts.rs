//! What is built before anything can run: guest agent, binary, guest image.
//!
//! The one rule: always ask the tool that knows (cargo, `holdfast image build`) whether there is something to do; no cache
//! of our own that could be wrong.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{root, target_dir, ui};

/// How the `holdfast` binary is built. Tests use the fast build, users and benchmarks the real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Debug,
    Release,
}

/// The statically linked agent that goes into guest images.
pub fn guest_agent() -> Result<PathBuf> {
    let host = host_triple()?;
    let folder = target_dir().join("guest");
    let mut cargo = cargo(&["build", "--profile", "guest", "-p", "holdfast-guest", "--target", &host, "--target-dir"]);
    cargo.arg(&folder).env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    ui::run_quietly("build the guest agent", &mut cargo)?;
    Ok(folder.join(host).join("guest").join("holdfast-guest"))
}

/// The binary, with the agent inside.
pub fn binary(build: Build, agent: &Path) -> Result<PathBuf> {
    let (words, name) = match build {
        Build::Debug => ("build the holdfast binary (debug)", "debug"),
        Build::Release => ("build the holdfast binary (release)", "release"),
    };
    let mut cargo = cargo(&["build", "-p", "holdfast", "--bin", "holdfast"]);
    if build == Build::Release {
        cargo.arg("--release");
    }
    ui::run_quietly(words, cargo.env("HOLDFAST_GUEST_AGENT", agent))?;
    Ok(target_dir().join(name).join("holdfast"))
}

/// The guest image in the user's cache folder; built once, then found.
pub fn image(binary: &Path) -> Result<()> {
    ui::run_quietly("guest image (built once, then cached)", Command::new(binary).args(["image", "build"]))
}

/// Everything, in order; answers the binary's path.
pub fn all(build: Build) -> Result<PathBuf> {
    let agent = guest_agent()?;
    let binary = binary(build, &agent)?;
    image(&binary)?;
    Ok(binary)
}

/// Writes openapi/*.json; the tests fail when they differ from the code.
pub fn openapi() -> Result<()> {
    let binary = binary(Build::Debug, &guest_agent()?)?;
    let mut command = Command::new(binary);
    command.args(["openapi", "--out", "openapi"]).current_dir(root());
    ui::run_loudly("write the OpenAPI documents", &mut command)
}

/// The cargo that runs us, in the source tree.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    // Set by `cargo run` for this program; not meant for the packages that it builds.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc -vV")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(triple) => Ok(triple.to_owned()),
        None => bail!("rustc does not say which machine it is for"),
    }
}
