//! Child processes of PID 1, and everybody else's orphans.
//!
//! The one rule: only the reaper waits. A wait for one pid beside a wait for any would race for the same exit status, so a
//! child is registered under the lock in which it is spawned, and its status is handed over by the reaper.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitIdOptions, WaitOptions};

use crate::tail::Tail;

/// How often a child that may be given up is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long a child that was given up may take to clean up.
const TERM_GRACE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Exit {
    code: Mutex<Option<i32>>,
    known: Condvar,
}

#[derive(Default)]
struct Table {
    children: Mutex<HashMap<i32, Arc<Exit>>>,
    spawned: Condvar,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running child. Dropping it leaves it running.
pub struct Child {
    pid: Pid,
    exit: Arc<Exit>,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
}

/// Starts a child in a process group of its own, so that it can be stopped with all it started.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    // The kernel gives PID 1 no PATH.
    if !command.get_envs().any(|(name, _)| name == "PATH") {
        command.env("PATH", crate::init::PATH);
    }
    let mut children = lock(&TABLE.children);
    let child = command
        .process_group(0)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", command.get_program().to_string_lossy())))?;
    let exit = Arc::new(Exit::default());
    let raw = child.id().cast_signed();
    let pid = Pid::from_raw(raw).ok_or_else(|| io::Error::other("a child without a pid"))?;
    children.insert(raw, Arc::clone(&exit));
    TABLE.spawned.notify_all();
    Ok(Child { pid, exit, stdin: child.stdin, stdout: child.stdout, stderr: child.stderr })
}

impl Child {
    /// Exit code, or 128 and the signal's number as a shell says it.
    pub fn wait(&self) -> i32 {
        let mut code = lock(&self.exit.code);
        loop {
            if let Some(code) = *code {
                return code;
            }
            code = self.exit.known.wait(code).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// `None` when it still runs after `limit`.
    pub fn wait_for(&self, limit: Duration) -> Option<i32> {
        let end = Instant::now() + limit;
        let mut code = lock(&self.exit.code);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if code.is_some() || left.is_zero() {
                return *code;
            }
            code = self.exit.known.wait_timeout(code, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// To the whole group; nothing once it has ended, because the number may be somebody else's by then.
    pub fn signal(&self, signal: Signal) {
        let _children = lock(&TABLE.children);
        if lock(&self.exit.code).is_none() {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }
}

/// Starts the thread that collects every ended process of the VM.
pub fn start_reaper() {
    crate::init::spawn("reaper", || {
        loop {
            // Blocks until somebody has ended, without taking the status yet: a spawn that fails collects its own.
            let waited =
                rustix::process::waitid(rustix::process::WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let mut children = lock(&TABLE.children);
            if waited.is_err() {
                // No child at all: the next one is born in `spawn`.
                drop(TABLE.spawned.wait_timeout(children, Duration::from_secs(1)));
                continue;
            }
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                if let Some(exit) = children.remove(&pid.as_raw_nonzero().get()) {
                    let code = status.exit_status().or(status.terminating_signal().map(|s| 128 + s)).unwrap_or(255);
                    *lock(&exit.code) = Some(code);
                    exit.known.notify_all();
                }
            }
        }
    });
}

/// Runs to the end; both outputs go, line by line, to `tail`. The error says what ran and how it ended, not what it said.
pub fn run(command: &mut Command, tail: &Arc<Tail>) -> io::Result<i32> {
    let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    Ok(follow(child, tail).wait())
}

/// [`run`], but ended with all that it started once `give_up` says so.
pub fn run_unless(command: &mut Command, tail: &Arc<Tail>, give_up: impl Fn() -> bool) -> io::Result<i32> {
    let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let child = follow(child, tail);
    loop {
        if let Some(code) = child.wait_for(LOOK) {
            return Ok(code);
        }
        if give_up() {
            child.signal(Signal::TERM);
            if child.wait_for(TERM_GRACE).is_none() {
                child.signal(Signal::KILL);
            }
            return Ok(child.wait());
        }
    }
}

/// Sends what a child writes to `tail`, by threads that end when its output does.
pub fn follow(mut child: Child, tail: &Arc<Tail>) -> Child {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let drain = |mut from: Box<dyn Read + Send>, channel: u8| {
        let tail = Arc::clone(tail);
        thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            let _writing = tail.writer();
            let mut buffer = [0; 8192];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                tail.push(channel, &buffer[..n]);
            }
        })
    };
    for (from, channel) in [
        (stdout.map(|s| Box::new(s) as Box<dyn Read + Send>), 1),
        (stderr.map(|s| Box::new(s) as Box<dyn Read + Send>), 2),
    ] {
        // Without the thread the pipe is closed, and the child hears of it.
        let _ = from.map(|from| drain(from, channel));
    }
    child
}

/// Runs to the end and gives what it wrote to stdout; an exit code that is not 0 is an error with its last words.
pub fn output(command: &mut Command) -> io::Result<String> {
    let tail = Arc::new(Tail::new(64 * 1024));
    let code = run(command, &tail)?;
    tail.settle(Duration::from_millis(200));
    match code {
        0 => Ok(tail.text(1)),
        _ => {
            let program = command.get_program().to_string_lossy();
            Err(io::Error::other(format!("{program} ended with {code}: {}", tail.last_lines(5))))
        }
    }
}
