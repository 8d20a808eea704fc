//! A run of many parts, and what became of each.
//!
//! The one rule: a part that failed does not keep the others from being run, and the last line counts them all.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::ui;

pub enum Outcome {
    Passed,
    /// Could not be checked here, and why that is no fault.
    Skipped(String),
}

#[derive(Default)]
pub struct Parts {
    results: Vec<(String, Duration, Result<Outcome>)>,
}

impl Parts {
    pub fn run(&mut self, name: &str, part: impl FnOnce() -> Result<Outcome>) {
        ui::heading(format!("== {name}"));
        let start = Instant::now();
        let result = part();
        let time = start.elapsed();
        match &result {
            Ok(Outcome::Passed) => ui::say(format!("== {name}: passed ({})", ui::seconds(time))),
            Ok(Outcome::Skipped(why)) => ui::say(format!("== {name}: skipped: {why}")),
            Err(error) => ui::say(format!("{error:#}\n== {name}: FAILED ({})", ui::seconds(time))),
        }
        self.results.push((name.to_owned(), time, result));
    }

    /// Prints the summary; fails when a part did.
    pub fn summary(self) -> Result<()> {
        ui::heading("Summary");
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        let mut total = Duration::ZERO;
        for (name, time, result) in &self.results {
            total += *time;
            let word = match result {
                Ok(Outcome::Passed) => {
                    passed += 1;
                    "passed"
                }
                Ok(Outcome::Skipped(_)) => {
                    skipped += 1;
                    "skipped"
                }
                Err(_) => {
                    failed += 1;
                    "FAILED"
                }
            };
            ui::say(format!("  {name:28} {word:8} {:>12}", ui::seconds(*time)));
        }
        ui::say(format!("  {:28} {:8} {:>12}\n", "all", "", ui::seconds(total)));
        let more = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        ui::say(format!("{passed} passed, {failed} failed{more}"));
        if failed > 0 {
            bail!("{failed} of {} parts failed", self.results.len());
        }
        if passed == 0 {
            bail!("no part was run");
        }
        Ok(())
    }
}
