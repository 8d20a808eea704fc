//! Facts about the machine that the node runs on. The one rule: what cannot be read is said to be so, never guessed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The kernel's boot id: a new one for each boot of the host.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Release of the running kernel.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// All memory of the host, in MiB.
pub fn memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Threads of the host that this process may use.
pub fn threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Bytes that an unprivileged process may still write to the file system of `path`.
pub fn disk_free(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that the files below `path` occupy; what vanishes meanwhile counts as nothing.
pub fn disk_used(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => disk_used(&entry.path()),
            Ok(m) => m.blocks().saturating_mul(512),
            Err(_) => 0,
        })
        .sum()
}

/// Bytes as whole GB (10^9), rounded down.
pub fn gb(bytes: u64) -> u64 {
    bytes / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_something_of_everything() {
        assert_eq!(boot_id().len(), 36);
        assert!(memory_mb() > 100 && threads() > 0 && !kernel_release().is_empty());
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("a"), vec![1u8; 100_000]).expect("write");
        assert!(disk_used(dir.path()) >= 100_000);
        assert!(disk_free(dir.path()).expect("statvfs") > 0);
    }
}
