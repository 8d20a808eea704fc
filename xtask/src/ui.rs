//! What a person sees while a command works.
//!
//! The one rule: something that takes long shows that it lives, on a terminal and in a log alike; and nobody reads a
//! tool's output unless it failed or was asked for.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two signs of life in a log.
const LOG_BEAT: Duration = Duration::from_secs(30);
/// On a terminal.
const TERMINAL_BEAT: Duration = Duration::from_millis(250);

pub fn say(text: impl AsRef<str>) {
    println!("{}", text.as_ref());
}

pub fn heading(text: impl AsRef<str>) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{}\x1b[0m", text.as_ref());
    } else {
        println!("\n{}", text.as_ref());
    }
}

pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{} s", time.as_secs()),
        s => format!("{} min {} s", s / 60, s % 60),
    }
}

/// Runs a command with its output in a log file and a line about how far it is; prints the log's end if it fails.
pub fn run_quietly(what: &str, command: &mut Command) -> Result<()> {
    let log = log_file(what)?;
    let file = File::create(&log)?;
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
    let mut child = child.with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    let status = show_life(what, &mut child, start, &log)?;
    if status.success() {
        say(format!("  done   {what} ({})", seconds(start.elapsed())));
        return Ok(());
    }
    let end = holdfast_harness::server::tail(&log, 40);
    bail!("{what} failed ({status}); the end of {}:\n{end}", log.display())
}

/// Runs a command whose output is for the reader.
pub fn run_loudly(what: &str, command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    if status.success() { Ok(()) } else { bail!("{what}: {status}") }
}

fn show_life(what: &str, child: &mut Child, start: Instant, log: &std::path::Path) -> Result<ExitStatus> {
    let terminal = std::io::stdout().is_terminal();
    let beat = if terminal { TERMINAL_BEAT } else { LOG_BEAT };
    let mut next = beat;
    if !terminal {
        say(format!("  start  {what}"));
    }
    loop {
        if let Some(status) = child.try_wait()? {
            if terminal {
                print!("\r\x1b[2K");
                std::io::stdout().flush()?;
            }
            return Ok(status);
        }
        if start.elapsed() >= next {
            next = start.elapsed() + beat;
            let line = last_line(log);
            let line: String = line.chars().filter(|c| !c.is_control()).take(70).collect();
            if terminal {
                print!("\r\x1b[2K  ...    {what} ({}) {line}", seconds(start.elapsed()));
                std::io::stdout().flush()?;
            } else {
                say(format!("  ...    {what} ({}) {line}", seconds(start.elapsed())));
            }
        }
        // The child is the condition; this is how often it is looked at.
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn last_line(log: &std::path::Path) -> String {
    let end = holdfast_harness::server::tail(log, 1);
    end.rsplit('\r').next().unwrap_or_default().trim().to_owned()
}

fn log_file(what: &str) -> Result<PathBuf> {
    let folder = crate::target_dir().join("xtask-logs");
    fs::create_dir_all(&folder)?;
    let name: String = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Ok(folder.join(format!("{name}.log")))
}
