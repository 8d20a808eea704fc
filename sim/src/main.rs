//! `cargo xtask sim`: runs seeds, prints the first that fails and how to replay it.
//!
//! The one rule: what is printed for a failing seed is enough to see it again.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use holdfast_sim::{Options, Tally, run};

const USAGE: &str = "\
holdfast-sim --seeds N [--seed S]   runs N seeds, from S on
holdfast-sim --seed S               replays one with its trace";
/// Lines of the trace that are shown of a seed that failed.
const LAST: usize = 40;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = words.iter().position(|w| w == name)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    match (number("--seed"), number("--seeds")) {
        (Some(seed), None) => replay(seed),
        (first, Some(seeds)) => sweep(first.unwrap_or(0), seeds),
        (None, None) => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn replay(seed: u64) -> ExitCode {
    let outcome = run(seed, &Options { trace: true, broken: None });
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("seed {seed}: {} events, trace {:016x}, {:?}", outcome.events, outcome.hash, outcome.tally);
    match outcome.violation {
        Some(what) => {
            println!("BROKEN: {what}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn sweep(first: u64, seeds: u64) -> ExitCode {
    let (mut events, mut tally) = (0, Tally::default());
    for seed in first..first.saturating_add(seeds) {
        let outcome = run(seed, &Options::default());
        events += outcome.events;
        tally.add(outcome.tally);
        if let Some(what) = outcome.violation {
            let again = run(seed, &Options { trace: true, broken: None });
            for line in again.trace.iter().skip(again.trace.len().saturating_sub(LAST)) {
                println!("{line}");
            }
            println!("BROKEN: {what}\nseed {seed} fails; its whole trace: cargo xtask sim --seed {seed}");
            return ExitCode::FAILURE;
        }
    }
    println!("{seeds} seeds, {events} events, no invariant broken; {tally:?}");
    ExitCode::SUCCESS
}
