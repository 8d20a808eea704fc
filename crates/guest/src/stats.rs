//! The machine as its own kernel sees it: processors, memory, disks, load.
//!
//! The one rule: what cannot be read is left at nothing. The host asks out of curiosity; no answer of this is worth a
//! failure.

use std::fs;
use std::path::Path;

use holdfast_model::guest::{DiskStats, SystemStats};

use crate::session::uptime_millis;

/// The writable layer of the root, in memory, and the data disk.
const DISKS: [&str; 2] = ["/", "/data"];

/// Reads everything anew.
pub fn read() -> SystemStats {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (os_name, os_version) = os(&text("/etc/os-release"));
    let (cpu_model, num_cpus) = processors(&text("/proc/cpuinfo"));
    let [loadavg_one, loadavg_five, loadavg_fifteen] = load(&text("/proc/loadavg"));
    let kernel_version = rustix::system::uname().release().to_string_lossy().into_owned();
    SystemStats {
        os_name,
        os_version,
        kernel_version,
        cpu_model,
        num_cpus,
        uptime: uptime_millis() / 1000,
        loadavg_one,
        loadavg_five,
        loadavg_fifteen,
        disks: disks(&text("/proc/mounts")),
        ..memory(&text("/proc/meminfo"))
    }
}

/// Name and version of os-release.
fn os(text: &str) -> (String, String) {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    (value("NAME"), value("VERSION_ID"))
}

/// Model of the first processor, and how many there are.
fn processors(text: &str) -> (String, u32) {
    let lines = || text.lines().filter_map(|line| line.split_once(':').map(|(key, value)| (key.trim(), value.trim())));
    let model = lines().find(|(key, _)| *key == "model name").map(|(_, value)| value.to_owned());
    let count = lines().filter(|(key, _)| *key == "processor").count();
    (model.unwrap_or_default(), u32::try_from(count).unwrap_or(u32::MAX))
}

fn memory(text: &str) -> SystemStats {
    let bytes = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let kilobytes = rest.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kilobytes.unwrap_or(0).saturating_mul(1024)
    };
    let (total_memory, available_memory) = (bytes("MemTotal"), bytes("MemAvailable"));
    let (total_swap, free_swap) = (bytes("SwapTotal"), bytes("SwapFree"));
    SystemStats {
        total_memory,
        available_memory,
        used_memory: total_memory.saturating_sub(available_memory),
        free_memory: bytes("MemFree"),
        total_swap,
        used_swap: total_swap.saturating_sub(free_swap),
        free_swap,
        ..SystemStats::default()
    }
}

/// Of the last one, five and fifteen minutes, in hundredths.
fn load(text: &str) -> [u32; 3] {
    let mut words = text.split_whitespace().map(|word| word.parse::<f64>().unwrap_or(0.0));
    // A cast of a float to an integer stays within the integer's bounds.
    std::array::from_fn(|_| (words.next().unwrap_or(0.0) * 100.0).round() as u32)
}

fn disks(mounts: &str) -> Vec<DiskStats> {
    let source = |place: &str| {
        // The last mount of a place is the one that is seen.
        let words = mounts.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
        words.into_iter().find(|words| words.get(1) == Some(&place)).map(|words| words[0].to_owned())
    };
    let disk = |place: &str| {
        let name = source(place)?;
        let sizes = rustix::fs::statvfs(Path::new(place)).ok()?;
        Some(DiskStats {
            name,
            mount_point: place.to_owned(),
            total_size: sizes.f_blocks.saturating_mul(sizes.f_frsize),
            free_size: sizes.f_bavail.saturating_mul(sizes.f_frsize),
        })
    };
    DISKS.into_iter().filter_map(disk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_writes() {
        assert_eq!(os("PRETTY_NAME=\"x\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=13\n").0, "Debian GNU/Linux");
        let cpus = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz: fast\n\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(processors(cpus), ("Some CPU @ 2 GHz: fast".to_owned(), 2));
        let memory = memory("MemTotal:     1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\nSwapTotal: 0 kB\n");
        assert_eq!((memory.total_memory, memory.used_memory, memory.free_memory), (1_024_000, 614_400, 102_400));
        assert_eq!(load("0.05 1.5 20.00 1/234 5678\n"), [5, 150, 2000]);
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        assert_eq!((os(""), processors("x"), load("")), Default::default());
        assert_eq!(memory("MemTotal: many kB\nMemFree"), SystemStats::default());
        assert!(disks("").is_empty());
    }

    #[test]
    fn this_machine() {
        let stats = read();
        assert!(stats.num_cpus > 0 && stats.total_memory > stats.used_memory && stats.uptime > 0, "{stats:?}");
        assert!(stats.disks.iter().any(|d| d.mount_point == "/" && d.total_size >= d.free_size), "{stats:?}");
    }
}
