//! Developer commands. `cargo xtask` lists them.
//!
//! The one rule: everything a command needs beyond a Rust toolchain it installs itself, and says so.

#![forbid(unsafe_code)]

mod artifacts;
mod bench;
mod contract;
mod crash;
mod deny;
mod interrupt;
mod packages;
mod parts;
mod sim;
mod test;
mod timeline;
mod ui;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask up [--once] [--port N] [--data-dir D]   a cloud on this machine, with a sample app in it
cargo xtask test [PART...]                          everything that is checked; names of parts choose some
cargo xtask crash [--plan P [--point X --hit N]]    the server stopped dead at every commit and effect, and checked
cargo xtask sim [--seeds N] [--seed S]              engine, nodes and faults, simulated; --seed alone replays
cargo xtask bench boot [--runs N]                   how long a boot takes, and what of it is ours
cargo xtask bench ops [--quick] [--only FIGURE]     operations per second, and pages and streams of them
cargo xtask bench api [--quick]                     details and pages of 100,000 CVMs
cargo xtask bench auth [--quick]                    what it costs a request to be let in
cargo xtask bench update [--quick]                  from a compose update to the new app, step by step
cargo xtask bench logs [--quick]                    100 followers of one busy log
cargo xtask bench webhooks [--quick]                 deliveries per second, and their lag behind commits
cargo xtask openapi                                 writes openapi/*.json from the code
cargo xtask contract PAGES                          what the contract tests hold answers to, from the Phala API's pages";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["up", rest @ ..] => up::run(up::Options::parse(rest)?),
        ["test", rest @ ..] => test::run(rest),
        ["crash", rest @ ..] => crash::run(rest),
        ["sim", rest @ ..] => sim::run(rest),
        ["bench", "boot", rest @ ..] => bench::run(rest),
        ["bench", name @ ("ops" | "api" | "auth" | "update" | "logs" | "webhooks"), rest @ ..] => {
            bench::loaded(name, rest)
        }
        ["openapi"] => artifacts::openapi(),
        ["contract", rest @ ..] => contract::run(rest),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("no such command: {}\n\n{USAGE}", other.join(" ")),
    }
}

/// The root of the source tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The build folder, wherever it was put.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}
