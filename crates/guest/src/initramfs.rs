//! The first life: from the kernel's hand-over to a writable root.
//!
//! The one rule: the root disk is never written. It is mounted read-only beneath a tmpfs, so every boot starts from the
//! same bytes, and whatever an app or an attacker changed in the OS is gone after a restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_model::guest::{PROBE_ARG, PROBE_MARKER};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};

use crate::init;

/// Modules of the initramfs, one file name per line in load order.
const MODULE_LIST: &str = "/modules/order";
/// How long the root disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(20);

/// Leaves the process in the new root. The initramfs is emptied, because its memory is never given back otherwise.
pub fn run() -> Result<(), String> {
    for dir in ["/proc", "/sys", "/dev", "/lower", "/rw", "/root"] {
        fs::create_dir_all(dir).map_err(|e| format!("{dir}: {e}"))?;
    }
    attach("proc", "/proc", "proc", MountFlags::empty(), "")?;
    attach("sysfs", "/sys", "sysfs", MountFlags::empty(), "")?;
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), "mode=0755")?;
    let arguments = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if arguments.split_whitespace().any(|a| a == PROBE_ARG) {
        init::console(PROBE_MARKER);
        init::power_off();
    }
    load_modules()?;
    let disk = disk_with_serial("boot", DISK_WAIT).ok_or("no disk with serial \"boot\" appeared")?;
    attach(&disk.to_string_lossy(), "/lower", "ext4", MountFlags::RDONLY, "")?;
    attach("tmpfs", "/rw", "tmpfs", MountFlags::empty(), "mode=0755")?;
    for dir in ["/rw/upper", "/rw/work"] {
        fs::create_dir(dir).map_err(|e| format!("{dir}: {e}"))?;
    }
    attach("overlay", "/root", "overlay", MountFlags::empty(), "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work")?;
    switch_root()
}

fn switch_root() -> Result<(), String> {
    for dir in ["/dev", "/sys", "/proc"] {
        let target = format!("/root{dir}");
        fs::create_dir_all(&target).map_err(|e| format!("{target}: {e}"))?;
        mount_move(dir, &target).map_err(|e| format!("moving {dir}: {e}"))?;
    }
    // The overlay holds its layers; nobody needs a way to reach them by name.
    for dir in ["/lower", "/rw"] {
        unmount(dir, UnmountFlags::DETACH).map_err(|e| format!("detaching {dir}: {e}"))?;
    }
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    std::env::set_current_dir("/root").map_err(|e| format!("/root: {e}"))?;
    mount_move(".", "/").map_err(|e| format!("moving the root: {e}"))?;
    rustix::process::chroot(".").map_err(|e| format!("changing the root: {e}"))?;
    std::env::set_current_dir("/").map_err(|e| format!("/: {e}"))
}

fn load_modules() -> Result<(), String> {
    let Ok(list) = fs::read_to_string(MODULE_LIST) else { return Ok(()) };
    for name in list.lines().filter(|l| !l.is_empty()) {
        let path = format!("/modules/{name}");
        let file = fs::File::open(&path).map_err(|e| format!("{path}: {e}"))?;
        match rustix::system::finit_module(file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            // A missing driver shows itself by the missing disk or port; one bad module must not end the boot.
            Err(e) => init::console(&format!("module {name}: {e}")),
        }
    }
    Ok(())
}

/// The block device whose virtio serial is `serial`; waits for it to appear.
pub fn disk_with_serial(serial: &str, wait: Duration) -> Option<PathBuf> {
    let end = Instant::now() + wait;
    loop {
        let found = fs::read_dir("/sys/block")
            .into_iter()
            .flatten()
            .flatten()
            .find(|entry| fs::read_to_string(entry.path().join("serial")).is_ok_and(|text| text.trim() == serial));
        let device = found.map(|entry| Path::new("/dev").join(entry.file_name()));
        if let Some(device) = device.filter(|d| d.exists()) {
            return Some(device);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Mounts; an error names the place.
pub fn attach(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), String> {
    let data = std::ffi::CString::new(data).map_err(|e| e.to_string())?;
    mount(source, target, kind, flags, Some(data.as_c_str())).map_err(|e| format!("mounting {target}: {e}"))
}
