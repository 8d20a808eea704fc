//! `holdfast ops`: reading operations. `watch` polls the operation itself, so what it shows is always what is.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use holdfast_model::Timestamp;
use serde_json::Value;

use crate::client::{Client, block_on, text};
use crate::{Common, refused};

#[derive(Subcommand)]
pub enum Command {
    /// List operations, newest first
    List(crate::lists::Operations),
    /// Show one operation with its steps
    Show {
        id: String,
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        json: bool,
    },
    /// Wait for one operation to end; exits 0 when done, 1 when failed, 3 when cancelled, 4 when the time is up
    Wait {
        id: String,
        #[command(flatten)]
        common: Common,
        /// Seconds to wait at the most
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        #[arg(long)]
        json: bool,
    },
    /// Cancel one operation: what it did is undone
    Cancel {
        id: String,
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        json: bool,
    },
    /// Do a failed operation again, as a new one
    Retry {
        id: String,
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        json: bool,
    },
    /// Write operations with their events to a file that `audit verify --export` checks
    Export(crate::export::Options),
    /// Follow one operation to its end; exits 0 when done, 1 when failed, 3 when cancelled
    Watch {
        id: String,
        #[command(flatten)]
        common: Common,
        /// One JSON document per change
        #[arg(long)]
        json: bool,
    },
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::List(options) => crate::lists::operations(options),
        Command::Export(options) => crate::export::run(options),
        Command::Show { id, common, json } => {
            let client = Client::new(&common)?;
            let operation = block_on(client.get(&path_of(&id)?))?;
            if json {
                println!("{operation}");
            } else {
                println!("{}", show(&operation));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Wait { id, common, timeout, json } => {
            let limit = Duration::from_secs(timeout);
            block_on(wait(Client::new(&common)?, path_of(&id)?, limit, json))
        }
        Command::Cancel { id, common, json } => act(&common, &id, "cancel", json),
        Command::Retry { id, common, json } => act(&common, &id, "retry", json),
        Command::Watch { id, common, json } => block_on(watch(Client::new(&common)?, path_of(&id)?, json)),
    }
}

fn path_of(id: &str) -> Result<String> {
    let id: uuid::Uuid = id.parse().map_err(|_| refused(format!("\"{id}\" is not an operation id (a UUID)")))?;
    Ok(format!("/operations/{id}"))
}

fn act(common: &Common, id: &str, verb: &str, json: bool) -> Result<ExitCode> {
    let client = Client::new(common)?;
    let operation = block_on(client.post(&format!("{}/{verb}", path_of(id)?)))?;
    if json {
        println!("{operation}");
    } else {
        println!("{}", show(&operation));
    }
    Ok(ExitCode::SUCCESS)
}

/// The exit code that an operation's status comes to; `None` while it runs.
fn exit_code(operation: &Value) -> Option<u8> {
    match text(operation, "status") {
        "done" => Some(0),
        "failed" | "stuck" => Some(1),
        "cancelled" => Some(3),
        _ => None,
    }
}

async fn wait(client: Client, path: String, limit: Duration, json: bool) -> Result<ExitCode> {
    let end = std::time::Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now()).as_secs();
        let operation = client.get(&format!("{path}/wait?timeout={}", left.min(20))).await?;
        let code = exit_code(&operation).or_else(|| (left == 0).then_some(4));
        if let Some(code) = code {
            if json {
                println!("{operation}");
            } else {
                println!("{}{}", headline(&operation), failure(&operation));
            }
            return Ok(ExitCode::from(code));
        }
    }
}

fn show(operation: &Value) -> String {
    let mut out = headline(operation);
    out.push_str(&format!("\n  id        {}", text(operation, "id")));
    out.push_str(&format!("\n  by        {}", text(&operation["actor"], "username")));
    out.push_str(&format!("\n  accepted  {}", text(operation, "created_at")));
    if let Some(ms) = operation["duration_ms"].as_i64() {
        out.push_str(&format!("\n  took      {}", duration(ms)));
    }
    if let Some(before) = operation["waiting_for"].as_str() {
        out.push_str(&format!("\n  waits for {before}"));
    }
    for (field, change) in operation["changes"].as_object().into_iter().flatten() {
        let side = |name: &str| if change[name].is_null() { "-".to_owned() } else { change[name].to_string() };
        out.push_str(&format!("\n  changes   {field}: {} -> {}", side("from"), side("to")));
    }
    for step in operation["steps"].as_array().into_iter().flatten() {
        out.push('\n');
        out.push_str(&step_line(step, None));
    }
    out.push_str(&failure(operation));
    out
}

fn headline(operation: &Value) -> String {
    let resource = &operation["resource"];
    format!("{} {}: {}", text(operation, "operation_type"), text(resource, "name"), text(operation, "status"))
}

fn failure(operation: &Value) -> String {
    let error = &operation["error"];
    if error.is_null() {
        return String::new();
    }
    let mut out = format!(
        "\n  error     {} {}\n  hint      {}",
        text(error, "code"),
        text(error, "message"),
        text(error, "hint")
    );
    if let Some(internal) = error["internal"].as_str() {
        out.push_str(&format!("\n  cause     {internal}"));
    }
    out
}

fn step_line(step: &Value, now: Option<Timestamp>) -> String {
    let state = text(step, "state");
    let mark = match state {
        "done" => "+",
        "failed" => "x",
        "running" => ">",
        _ => " ",
    };
    let took = match (step["duration_ms"].as_i64(), now, Timestamp::parse(text(step, "started_at"))) {
        (Some(ms), ..) => duration(ms),
        (None, Some(now), Some(start)) if state == "running" => {
            duration(i64::try_from(now.since(start).as_millis()).unwrap_or(0))
        }
        _ => String::new(),
    };
    format!("  {mark} {:16} {state:8} {took}", text(step, "name")).trim_end().to_owned()
}

pub fn duration(ms: i64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

async fn watch(client: Client, path: String, json: bool) -> Result<ExitCode> {
    let live = std::io::stderr().is_terminal() && !json;
    let mut drawn = 0;
    let mut last = Value::Null;
    let mut silent_since: Option<std::time::Instant> = None;
    loop {
        let operation = match client.get(&path).await {
            Ok(operation) => operation,
            // A server that restarts is waited for; an answer that says no is final.
            Err(error)
                if error.root_cause().is::<reqwest::Error>() || format!("{error:#}").contains("cannot reach") =>
            {
                let since = *silent_since.get_or_insert_with(std::time::Instant::now);
                if since.elapsed() > Duration::from_secs(60) {
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        silent_since = None;
        let changed = operation["updated_at"] != last["updated_at"];
        if json && changed {
            println!("{operation}");
        } else if live {
            drawn = draw(&operation, drawn)?;
        } else if changed {
            print_news(&operation, &last);
        }
        if let Some(code) = exit_code(&operation) {
            if !json {
                println!("{}{}", headline(&operation), failure(&operation));
            }
            return Ok(ExitCode::from(code));
        }
        last = operation;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Draws the steps over the last drawing. Returns how many lines there are now.
fn draw(operation: &Value, drawn: usize) -> Result<usize> {
    let now = holdfast_control::Clock::now(&holdfast_control::SystemClock);
    let mut lines = vec![headline(operation)];
    lines.extend(operation["steps"].as_array().into_iter().flatten().map(|step| step_line(step, Some(now))));
    let mut err = std::io::stderr().lock();
    if drawn > 0 {
        write!(err, "\x1b[{drawn}A")?;
    }
    for line in &lines {
        writeln!(err, "\x1b[2K{line}")?;
    }
    Ok(lines.len())
}

/// Prints the steps that changed.
fn print_news(operation: &Value, last: &Value) {
    for step in operation["steps"].as_array().into_iter().flatten() {
        let before = last["steps"].as_array().into_iter().flatten().find(|s| s["name"] == step["name"]);
        let state = text(step, "state");
        if before.is_none_or(|b| b["state"] != step["state"]) && !matches!(state, "pending" | "skipped") {
            eprintln!("{}", step_line(step, None));
        }
    }
}
