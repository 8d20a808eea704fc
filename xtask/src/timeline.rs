//! An operation's steps, drawn while they happen.
//!
//! The one rule: on a terminal the drawing is redrawn in place; anywhere else each change is one line, so that a log reads
//! like a history.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_harness::client::Client;
use holdfast_harness::operation;
use serde_json::Value;

use crate::interrupt::Interrupt;

/// Shows the operation until it is over. Fails when it did not end well.
pub fn follow(client: &Client, id: &str, limit: Duration, interrupt: &Interrupt) -> Result<Value> {
    let mut view = View::default();
    let over = holdfast_harness::until(limit, "the operation is over", || {
        if interrupt.wanted() {
            bail!("interrupted");
        }
        let operation = operation::by_id(client, id)?;
        view.show(&operation)?;
        Ok(operation::is_over(&operation).then_some(operation))
    })?;
    match over["status"].as_str() {
        Some("done") => Ok(over),
        status => {
            let error = &over["error"];
            let why = error["message"].as_str().or(error.as_str()).unwrap_or("no reason given");
            bail!("the operation ended as {}: {why}", status.unwrap_or("?"))
        }
    }
}

/// Follows the newest operation of a CVM.
pub fn follow_newest(client: &Client, cvm: &str, limit: Duration, interrupt: &Interrupt) -> Result<Value> {
    let newest = operation::newest(client, cvm)?;
    follow(client, newest["id"].as_str().context("an operation without an id")?, limit, interrupt)
}

#[derive(Default)]
struct View {
    headed: bool,
    lines_drawn: usize,
    seen: HashMap<String, String>,
}

impl View {
    fn show(&mut self, operation: &Value) -> Result<()> {
        if !self.headed {
            self.headed = true;
            let word = |key: &str| operation[key].as_str().unwrap_or("?").to_owned();
            let name = operation["resource"]["name"].as_str().unwrap_or_default();
            println!("  {} {name}  (operation {})", word("operation_type"), word("id"));
        }
        let steps: Vec<_> = operation["steps"].as_array().into_iter().flatten().map(line).collect();
        let mut out = std::io::stdout().lock();
        if out.is_terminal() {
            if self.lines_drawn > 0 {
                write!(out, "\x1b[{}A", self.lines_drawn)?;
            }
            for (_, state, duration, name) in &steps {
                writeln!(out, "\r\x1b[2K  {} {name:28} {state:12} {duration:>10}", mark(state))?;
            }
            self.lines_drawn = steps.len();
        } else {
            for (key, state, duration, name) in steps {
                let changed = self.seen.insert(key, state.clone()).is_none_or(|before| before != state);
                if changed && state != "pending" {
                    writeln!(out, "  {} {name:28} {state:12} {duration:>10}", mark(&state))?;
                }
            }
        }
        Ok(out.flush()?)
    }
}

/// (key, state, duration, name) of a step.
fn line(step: &Value) -> (String, String, String, String) {
    let name = step["name"].as_str().unwrap_or("?").to_owned();
    let state = step["state"].as_str().unwrap_or("?").to_owned();
    let duration = step["duration_ms"].as_u64().map(|ms| match ms {
        0..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", ms as f64 / 1000.0),
    });
    (name.clone(), state, duration.unwrap_or_default(), name)
}

fn mark(state: &str) -> &'static str {
    match state {
        "done" => "[x]",
        "running" => "[>]",
        "failed" => "[!]",
        "undone" | "undoing" => "[<]",
        _ => "[ ]",
    }
}
