//! `cargo xtask test`: everything that is checked before a change is accepted.
//!
//! The one rule: what a part needs it installs or builds itself, so that this one command means the same on a fresh
//! machine, on a developer's and in CI.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::artifacts::{self, Build, cargo};
use crate::parts::{Outcome, Parts};
use crate::{crash, deny, packages, root, sim, ui};

/// Name, what it checks. In the order in which they run: what fails fast comes first.
const PARTS: &[(&str, &str)] = &[
    ("fmt", "the sources are formatted"),
    ("clippy", "no lint fires"),
    ("deny", "licences, bans and sources of all dependencies"),
    ("advisories", "no dependency has a known hole"),
    ("unit", "unit, property and API tests, and the OpenAPI documents"),
    ("sim", "the invariants of operations, in 2,000 simulated runs full of faults"),
    ("crash", "the server stopped dead at every commit and every effect of every plan"),
    ("simulated", "crashes, full disks, bad input and restarts, with simulated VMs"),
    ("real", "the official command line against real VMs"),
    ("up", "what a newcomer's first command does"),
];

pub fn run(words: &[&str]) -> Result<()> {
    let mut chosen = Vec::new();
    for word in words {
        let (part, filter) = word.split_once(':').unwrap_or((word, ""));
        if !PARTS.iter().any(|(name, _)| *name == part) {
            let list: Vec<_> = PARTS.iter().map(|(name, what)| format!("  {name:12} {what}")).collect();
            bail!(
                "no such part: {part}. There are, each also as PART:FILTER where it runs tests:\n{}",
                list.join("\n")
            );
        }
        chosen.push((part, filter));
    }
    if chosen.is_empty() {
        chosen = PARTS.iter().map(|(name, _)| (*name, "")).collect();
    }
    let mut parts = Parts::default();
    parts.run("packages", || {
        packages::install(&[packages::RUN, packages::TEST])?;
        Ok(Outcome::Passed)
    });
    let product = Product::default();
    for (part, filter) in chosen {
        parts.run(part, || match part {
            "fmt" => loudly("cargo fmt", cargo(&["fmt", "--all", "--check"])),
            "clippy" => clippy(),
            "deny" => deny::policy(),
            "advisories" => deny::advisories(),
            "unit" => {
                // Some of them boot the guest image.
                product.binary()?;
                unit(filter)
            }
            "sim" => {
                sim::run(&["--seeds", sim::SEEDS])?;
                Ok(Outcome::Passed)
            }
            "crash" => {
                crash::run(&[])?;
                Ok(Outcome::Passed)
            }
            "simulated" => {
                clients()?;
                python(&root().join("tests/schemathesis"), "install schemathesis")?;
                end_to_end("simulated", filter, product.binary()?)
            }
            "real" => {
                clients()?;
                end_to_end("real", filter, product.binary()?)
            }
            _ => up(),
        });
    }
    parts.summary()
}

/// What users run, built when the first part needs it.
#[derive(Default)]
struct Product(OnceCell<PathBuf>);

impl Product {
    fn binary(&self) -> Result<&Path> {
        if self.0.get().is_none() {
            let _ = self.0.set(artifacts::all(Build::Release)?);
        }
        match self.0.get() {
            Some(path) => Ok(path),
            None => bail!("the binary was not built"),
        }
    }
}

fn loudly(what: &str, mut command: Command) -> Result<Outcome> {
    ui::run_loudly(what, &mut command)?;
    Ok(Outcome::Passed)
}

fn clippy() -> Result<Outcome> {
    let mut command =
        cargo(&["clippy", "--workspace", "--features", "xtask/ops", "--all-targets", "--", "-D", "warnings"]);
    ui::run_quietly("cargo clippy", &mut command)?;
    Ok(Outcome::Passed)
}

fn unit(filter: &str) -> Result<Outcome> {
    // Built apart from being run, so that the long part shows progress and the tests' own output stays readable.
    let tests = ["test", "--workspace", "--features", "xtask/ops", "--exclude", "holdfast-e2e", "--no-fail-fast"];
    let agent = artifacts::guest_agent()?;
    let tests = || {
        let mut command = cargo(&tests);
        command.env("HOLDFAST_GUEST_AGENT", &agent);
        command
    };
    ui::run_quietly("build the tests", tests().arg("--no-run"))?;
    let mut command = tests();
    command.arg("--quiet");
    if !filter.is_empty() {
        command.arg(filter);
    }
    loudly("cargo test", command)
}

fn end_to_end(target: &str, filter: &str, binary: &Path) -> Result<Outcome> {
    let tests = ["test", "--package", "holdfast-e2e", "--test", target];
    ui::run_quietly("build the end-to-end tests", cargo(&tests).arg("--no-run"))?;
    let mut command = cargo(&tests);
    // A failed test says what it saw; where in the test runner it did so helps nobody.
    command.env("HOLDFAST_BIN", binary).env("RUST_BACKTRACE", "0").arg("--");
    if target == "real" {
        // An emulated guest runs on one core, whatever its vCPUs; more of them at a time than cores would be late for all.
        command.arg("--test-threads=2");
    }
    if !filter.is_empty() {
        command.arg(filter);
    }
    loudly(target, command)
}

/// The official clients, at the versions that are locked.
fn clients() -> Result<()> {
    let folder = root().join("tests/clients");
    installed(&folder, "package-lock.json", "node_modules/phala/dist/index.js", "node_modules", || {
        let args = ["ci", "--no-audit", "--no-fund", "--ignore-scripts"];
        ui::run_quietly("install the official npm clients", Command::new("npm").args(args).current_dir(&folder))
    })?;
    python(&folder, "install the official Python client")
}

/// What the folder's requirements.txt names, in an environment of its own.
fn python(folder: &Path, what: &str) -> Result<()> {
    installed(folder, "requirements.txt", ".venv/bin/python", ".venv", || {
        let venv = ["-m", "venv", "--clear", ".venv"];
        ui::run_quietly("make a Python environment", Command::new("python3").args(venv).current_dir(folder))?;
        let args = ["-m", "pip", "install", "--no-deps", "--require-hashes", "-r", "requirements.txt"];
        let mut pip = Command::new(folder.join(".venv/bin/python"));
        ui::run_quietly(what, pip.args(args).current_dir(folder))
    })
}

/// Installs into `target` unless that was done from this very lock file and `witness` is there.
fn installed(
    folder: &Path,
    lock: &str,
    witness: &str,
    target: &str,
    install: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let lock = std::fs::read(folder.join(lock))?;
    let stamp = folder.join(target).join(".installed-from");
    if folder.join(witness).exists() && std::fs::read(&stamp).is_ok_and(|from| from == lock) {
        return Ok(());
    }
    install()?;
    Ok(std::fs::write(stamp, lock)?)
}

fn up() -> Result<Outcome> {
    let this = std::env::current_exe()?;
    loudly("xtask up --once", {
        let mut command = Command::new(this);
        command.args(["up", "--once"]);
        command
    })
}
