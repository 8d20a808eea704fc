//! The results as a table for people and as JSON for machines.
//!
//! The one rule: a goal that was missed is shown as missed.

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Bench, Results, plot};
use crate::bench::report::machine;
use crate::bench::stats::Samples;
use crate::{root, target_dir, ui};

#[derive(Debug, Clone, Copy)]
enum Goal {
    Below(f64),
    AtLeast(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

/// One figure beside its ceiling and its goal.
#[derive(Debug, Clone)]
pub struct Line {
    name: Cow<'static, str>,
    unit: &'static str,
    measured: f64,
    /// The statements alone, or what it is compared with.
    ceiling: Option<f64>,
    goal: Option<Goal>,
}

impl Line {
    pub fn figure(name: impl Into<Cow<'static, str>>, unit: &'static str, measured: f64) -> Self {
        Self { name: name.into(), unit, measured, ceiling: None, goal: None }
    }

    pub fn at_least(name: impl Into<Cow<'static, str>>, unit: &'static str, measured: f64, goal: f64) -> Self {
        Self { goal: Some(Goal::AtLeast(goal)), ..Self::figure(name, unit, measured) }
    }

    pub fn ratio(name: impl Into<Cow<'static, str>>, unit: &'static str, measured: f64, ceiling: f64) -> Self {
        Self { ceiling: Some(ceiling), ..Self::figure(name, unit, measured) }
    }

    /// Milliseconds against other ones of the same kind.
    pub fn against(name: impl Into<Cow<'static, str>>, measured: f64, other: f64) -> Self {
        Self::ratio(name, "ms", measured, other)
    }

    pub fn below(self, goal: f64) -> Self {
        Self { goal: Some(Goal::Below(goal)), ..self }
    }

    pub fn no_less_than(self, goal: f64) -> Self {
        Self { goal: Some(Goal::AtLeast(goal)), ..self }
    }

    pub fn at_least_ratio(self, goal: f64) -> Self {
        Self { goal: Some(Goal::RatioAtLeast(goal)), ..self }
    }

    pub fn at_most_ratio(self, goal: f64) -> Self {
        Self { goal: Some(Goal::RatioAtMost(goal)), ..self }
    }

    fn ratio_value(&self) -> Option<f64> {
        self.ceiling.filter(|ceiling| *ceiling > 0.0).map(|ceiling| self.measured / ceiling)
    }

    fn reached(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::Below(goal) => self.measured < goal,
            Goal::AtLeast(goal) => self.measured >= goal,
            Goal::RatioAtLeast(goal) => self.ratio_value()? >= goal,
            Goal::RatioAtMost(goal) => self.ratio_value()? <= goal,
        })
    }

    fn goal_text(&self) -> String {
        match self.goal {
            None => String::new(),
            Some(Goal::Below(goal)) => format!("< {goal} {}", self.unit),
            Some(Goal::AtLeast(goal)) => format!(">= {goal} {}", self.unit),
            Some(Goal::RatioAtLeast(goal)) => format!("ratio >= {goal}"),
            Some(Goal::RatioAtMost(goal)) => format!("ratio <= {goal}"),
        }
    }

    fn row(&self) -> String {
        let verdict = match self.reached() {
            Some(true) => "reached",
            Some(false) => "missed",
            None => "",
        };
        let ceiling = self.ceiling.map(|ceiling| format!("{} {}", number(ceiling), self.unit)).unwrap_or_default();
        let ratio = self.ratio_value().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let measured = format!("{} {}", number(self.measured), self.unit);
        format!("| {} | {measured} | {ceiling} | {ratio} | {} | {verdict} |\n", self.name, self.goal_text())
    }

    fn json(&self) -> Value {
        json!({
            "figure": self.name, "unit": self.unit, "measured": rounded(self.measured),
            "ceiling": self.ceiling.map(rounded), "ratio": self.ratio_value().map(rounded), "goal": self.goal_text(),
            "reached": self.reached(),
        })
    }
}

/// Three digits that mean something, more for what is large.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// What is said of one run.
pub struct Report<'a> {
    /// The command and the files: `ops`.
    pub name: &'a str,
    pub title: &'a str,
    /// What the second column of numbers is.
    pub beside: &'a str,
    pub lines: &'a [Line],
    /// Below the table.
    pub notes: String,
    pub samples: Value,
}

/// Writes the results and shows them; answers the folder that they are in. A whole run is what the repository publishes; any
/// other one is only for who ran it.
pub fn publish(report: Report, whole: bool) -> Result<PathBuf> {
    let Report { name, title, beside, lines, notes, samples } = report;
    let folder = if whole { root().join("benches/results") } else { target_dir().join(format!("bench-{name}")) };
    fs::create_dir_all(&folder)?;
    let (cores, memory) = machine();
    let kind = if whole { "" } else { " (not a whole run)" };
    let mut text = format!(
        "# {title}\n\nWritten by `cargo xtask bench {name}`{kind} on {cores} cores with {memory} GB. What each figure and \
         its {beside} is: [performance](../../docs/performance.md).\n\n\
         | figure | measured | {beside} | ratio | goal | |\n|---|---|---|---|---|---|\n"
    );
    text.extend(lines.iter().map(Line::row));
    text += &notes;
    let document = json!({
        "machine": {"cores": cores, "memory_gb": memory},
        "whole": whole,
        "figures": lines.iter().map(Line::json).collect::<Vec<_>>(),
        "samples_ms": samples,
    });
    fs::write(folder.join(format!("{name}.json")), format!("{document:#}\n"))?;
    let file = folder.join(format!("{name}.md"));
    fs::write(&file, &text)?;
    ui::heading(format!("{}", file.display()));
    ui::say(text);
    Ok(folder)
}

pub fn write(bench: &Bench, results: &Results) -> Result<()> {
    let report = Report {
        name: "ops",
        title: "Operations",
        beside: "ceiling",
        lines: &results.lines(),
        notes: notes(results),
        samples: samples(results),
    };
    let folder = publish(report, !bench.quick && results.is_whole())?;
    if let Some(list) = &results.list {
        plot::draw(&list.sizes, &folder.join("ops.svg"))?;
    }
    Ok(())
}

fn notes(results: &Results) -> String {
    let disk = Samples::new(results.disk.clone());
    let (p50, p99) = (disk.median(), disk.percentile(99.0));
    let mut text = format!("\nThe disk: one page is durable after {p50:.2} ms (p50), {p99:.2} ms (p99).\n");
    if let Some(t) = &results.throughput {
        text += &format!(
            "\nA create, by the {} of this run: {:.1} events, {:.1} rows inserted, an acceptance and {:.1} decisions. \
             Creates per second in each round, with more CVMs in every next one: {}.\n",
            t.count,
            t.events,
            t.rows,
            t.decisions,
            t.rates.iter().map(|rate| number(*rate)).collect::<Vec<_>>().join(", ")
        );
    }
    if let Some(list) = &results.list {
        text += &format!("\nA page of 50 operations is {:.0} KB of JSON.\n\n", list.page_bytes as f64 / 1000.0);
        text += "| events stored | page p50 | page p99 | statement p50 | statement p99 |\n|---|---|---|---|---|\n";
        for size in &list.sizes {
            let (page, statement) = (&size.page, &size.statement);
            text += &format!(
                "| {} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms |\n",
                size.events,
                page.median(),
                page.percentile(99.0),
                statement.median(),
                statement.percentile(99.0)
            );
        }
    }
    if let Some(watch) = &results.watch {
        text += &format!("\nEach of the watchers read {} events.\n", watch.events);
    }
    if let Some(seal) = &results.seal {
        text += &format!("\nThe backlog that was sealed: {} events.\n", seal.events);
    }
    text
}

fn samples(results: &Results) -> Value {
    let mut all = json!({"disk": Samples::new(results.disk.clone()).json()});
    if let Some(t) = &results.throughput {
        all["create"] = t.whole.json();
    }
    if let Some(a) = &results.accept {
        all["accept"] = json!({
            "plain": a.plain.accept.json(), "with_key": a.with_key.accept.json(), "request": a.request.json(),
            "statements": a.statements.json(), "statements_without_audit": a.statements_without_audit.json(),
            "statements_with_key": a.statements_with_key.json(),
        });
    }
    if let Some(list) = &results.list {
        let sizes = list
            .sizes
            .iter()
            .map(|size| json!({"events": size.events, "page": size.page.json(), "statement": size.statement.json()}));
        all["list"] = json!({
            "sizes": sizes.collect::<Vec<_>>(), "deep_page": list.deep_page, "deep": list.deep.json(),
            "deep_statement": list.deep_statement.json(),
        });
    }
    if let Some(watch) = &results.watch {
        all["watch"] = json!({"server": watch.delay.json(), "bare": watch.bare.json()});
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_was_missed_is_shown_as_missed() {
        assert!(Line::figure("a", "ms", 3.0).below(2.0).row().ends_with("| < 2 ms | missed |\n"));
        assert!(Line::figure("a", "ms", 1.0).below(2.0).row().ends_with("| reached |\n"));
        let half = Line::ratio("a", "/s", 40.0, 100.0);
        assert_eq!(half.clone().at_least_ratio(0.5).reached(), Some(false));
        assert_eq!(half.clone().at_most_ratio(0.5).reached(), Some(true));
        assert_eq!(half.reached(), None);
    }
}
