//! Processes by what the kernel says about them.
//!
//! The one rule: a process is only ever ended by its id, and only when it works in a folder of ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

/// Ids of the QEMU processes that work inside `folder`.
pub fn vms_of(folder: &Path) -> Vec<i32> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    ids.filter(|&id| {
        let is_qemu = arguments(id).first().is_some_and(|program| program.contains("qemu-system"));
        is_qemu && working_folder(id).is_some_and(|at| at.starts_with(&folder))
    })
    .collect()
}

pub fn working_folder(id: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{id}/cwd")).ok()
}

/// The command line of a process; empty when it is gone or a zombie.
pub fn arguments(id: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let parts = bytes.split(|b| *b == 0).filter(|part| !part.is_empty());
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// Resident memory in bytes: all of it, and the part that is not shared with files.
pub fn resident(id: i32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    };
    Some((field("VmRSS:")?, field("RssAnon:")?))
}

pub fn signal(id: i32, signal: Signal) -> Result<()> {
    let Some(pid) = Pid::from_raw(id) else { return Ok(()) };
    match kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// Ends the VMs of a folder at once, as pulling the plug does.
pub fn kill_vms(folder: &Path) {
    for id in vms_of(folder) {
        let _ = signal(id, Signal::KILL);
    }
}
