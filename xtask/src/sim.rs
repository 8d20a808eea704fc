//! `cargo xtask sim`: the seeded simulator, at the speed of a release build.
//!
//! The one rule: everything is said by the simulator itself; this only builds and starts it.

use anyhow::{Result, bail};

use crate::artifacts::cargo;
use crate::ui;

/// Seeds that `cargo xtask test` runs.
pub const SEEDS: &str = "2000";

pub fn run(words: &[&str]) -> Result<()> {
    match words {
        ["--seeds" | "--seed", number] if number.parse::<u64>().is_ok() => {}
        ["--seeds", seeds, "--seed", seed] | ["--seed", seed, "--seeds", seeds]
            if seeds.parse::<u64>().is_ok() && seed.parse::<u64>().is_ok() => {}
        _ => bail!(
            "cargo xtask sim --seeds N [--seed S] runs N seeds from S on; --seed S alone replays one with its trace"
        ),
    }
    let mut command = cargo(&["run", "--quiet", "--release", "--package", "holdfast-sim", "--"]);
    ui::run_loudly("holdfast-sim", command.args(words))
}
