//! QEMU as a process that is not ours: started in a session of its own, watched by a pidfd, found again after a restart.
//!
//! The one rule: a pid alone means nothing. A process is taken for a VM's only if it started when the record says, or if
//! its command line and working directory name that VM; and it is signalled only through a pidfd that was opened before
//! that was checked.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use uuid::Uuid;

use super::argv::{self, STDERR_LOG, STDOUT_LOG};
use crate::record::Process;

/// A live process and the right to signal exactly it.
#[derive(Debug)]
pub struct Handle {
    pub process: Process,
    fd: AsyncFd<OwnedFd>,
}

impl Handle {
    /// Opens `pid` and reads when it started. Fails when there is no such process, or only its remains.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // Opened first: what is read from /proc afterwards is about this very process, or it has ended.
        let fd = pidfd_open(number, PidfdFlags::NONBLOCK)?;
        let start_time = start_time(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        // SAFETY: the registration owns the descriptor, so it stays open, and the same, until it is deregistered.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { process: Process { pid, start_time }, fd })
    }

    /// The process of a record, if it still runs.
    pub fn find(process: Process) -> Option<Self> {
        Self::open(process.pid).ok().filter(|h| h.process == process)
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        // A pidfd becomes readable when its process ends, and stays so.
        let _ = self.fd.readable().await;
    }

    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.fd.get_ref(), Signal::KILL) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// When the process started, in clock ticks after boot; absent for a zombie and for no process at all.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything; the third is the state, the 22nd the time.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let time = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(time)
}

/// Every process that runs the VM of `folder`, whatever the records say. Reads all of /proc.
pub fn scan(uuid: Uuid, folder: &Path) -> Vec<Handle> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| runs_vm(*pid, uuid, folder)).filter_map(|pid| Handle::open(pid).ok()).collect()
}

fn runs_vm(pid: i32, uuid: Uuid, folder: &Path) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let argv: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
    let Ok(cwd) = fs::read_link(format!("/proc/{pid}/cwd")) else { return false };
    argv::is_of_vm(&argv, &cwd, uuid, folder)
}

/// Starts QEMU in `folder`. It belongs to a session of its own and outlives this process.
pub fn spawn(binary: &Path, args: &[OsString], folder: &Path) -> io::Result<Child> {
    let log = |name| {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(folder.join(name))?;
        Ok::<_, io::Error>(Stdio::from(file))
    };
    let mut command = Command::new(binary);
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(log(STDOUT_LOG)?).stderr(log(STDERR_LOG)?);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
    command.spawn()
}

/// Ends the process when this one ends, even when this one is killed. For helpers, never for a VM.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command
            .pre_exec(|| rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from));
    }
}

/// The last lines of what a log got after its first `from` bytes, for an error message.
pub fn last_lines(path: &Path, from: u64) -> String {
    let text = fs::read(path).unwrap_or_default();
    let from = usize::try_from(from).unwrap_or(0).min(text.len()).max(text.len().saturating_sub(2000));
    let text = String::from_utf8_lossy(&text[from..]).into_owned();
    let lines: Vec<&str> = text.lines().rev().filter(|l| !l.trim().is_empty()).take(4).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}

/// The folder as the kernel names it, which is how `/proc/<pid>/cwd` names it too.
pub fn real(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_process_is_watched_and_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = i32::try_from(child.id().expect("runs")).expect("a pid");
        let handle = Handle::open(pid).expect("open");
        assert!(Handle::find(handle.process).is_some());
        let other = Process { start_time: handle.process.start_time + 1, ..handle.process };
        assert!(Handle::find(other).is_none(), "a reused pid is somebody else");
        handle.kill().expect("kill");
        tokio::time::timeout(Duration::from_secs(2), handle.ended()).await.expect("ends");
        assert!(Handle::open(pid).is_err(), "a zombie does not run");
        child.wait().await.expect("reaped");
        handle.kill().expect("killing again is harmless");
    }

    #[tokio::test]
    async fn a_session_of_its_own() {
        let dir = tempfile::tempdir().expect("a folder");
        let args = ["-c".into(), "echo out; echo err >&2; exec sleep 60".into()];
        let mut child = spawn(Path::new("/bin/sh"), &args, dir.path()).expect("spawn");
        let pid = i32::try_from(child.id().expect("runs")).expect("a pid");
        let raw = Pid::from_raw(pid).expect("a pid");
        assert_eq!(rustix::process::getsid(Some(raw)).expect("getsid"), raw);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while last_lines(&dir.path().join(STDERR_LOG), 0) != "err" {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().await.expect("kill");
    }
}
