//! The second life, as PID 1: mounts, network, the threads, and reaping for ever.
//!
//! The one rule: a part that fails says so and the rest goes on. A VM whose network or docker is broken must still answer
//! its host, report what happened, and power off when told.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

use crate::initramfs::attach;
use crate::session::Agent;
use crate::{boot, port, power, process};

/// Where programs of the guest are.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the guest. Comes back only if the very first parts fail.
pub fn run() {
    process::start_reaper();
    mounts();
    let agent = Arc::new(Agent::new(boot_id()));
    port::start(Arc::clone(&agent));
    power::watch(&agent);
    spawn("boot", move || boot::run(&agent));
}

/// A named thread. Threads are few and started early; one that cannot start is a VM without memory.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name(name.to_owned()).stack_size(512 * 1024).spawn(body) {
        console(&format!("thread {name}: {error}"));
    }
}

fn mounts() {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    let no_exec = quiet | MountFlags::NOEXEC;
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue", "/data"] {
        let _ = fs::create_dir_all(dir);
    }
    for (source, target, kind, flags, data) in [
        ("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", "tmpfs", quiet, "mode=1777"),
        ("mqueue", "/dev/mqueue", "mqueue", no_exec, ""),
        ("tmpfs", "/run", "tmpfs", quiet, "mode=0755"),
        ("tmpfs", "/tmp", "tmpfs", quiet, "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", no_exec, "nsdelegate"),
    ] {
        if let Err(error) = attach(source, target, kind, flags, data) {
            console(&error);
        }
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ] {
        let _ = fs::remove_file(link);
        let _ = symlink(target, link);
    }
    for dir in ["/run/lock", "/run/holdfast", "/var/lib/containerd"] {
        let _ = fs::create_dir_all(dir);
    }
    for (key, value) in [
        ("/proc/sys/net/ipv4/ip_forward", "1"),
        ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
        // A crashing process must not leave its memory, env values and all, in a file.
        ("/proc/sys/kernel/core_pattern", "|/bin/false"),
        ("/proc/sys/kernel/dmesg_restrict", "1"),
        ("/proc/sys/vm/max_map_count", "262144"),
        ("/proc/sys/fs/inotify/max_user_instances", "1024"),
    ] {
        let _ = fs::write(key, value);
    }
}

/// The static address that QEMU's user-mode network expects, and the one rule by which containers reach the world.
pub fn network() {
    let batch = "link set lo up\naddr add 10.0.2.15/24 dev eth0\nlink set eth0 up\nroute add default via 10.0.2.2\n";
    let _ = fs::remove_file("/etc/resolv.conf");
    let _ = fs::write("/etc/resolv.conf", "nameserver 10.0.2.3\n");
    let _ = fs::write("/run/holdfast/network", batch);
    // The rule first: it loads the packet filter, which patches kernel code that packets run through. While no link is up
    // nothing runs there, so emulators that are slow to notice patched code cannot trip over it.
    for (program, arguments) in [
        ("iptables", &["-w", "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"][..]),
        ("ip", &["-batch", "/run/holdfast/network"][..]),
    ] {
        let result = process::output(Command::new(program).args(arguments));
        if let Err(error) = result {
            console(&format!("network: {error}"));
        }
    }
}

pub fn set_hostname(name: &str) {
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    let name = if name.is_empty() { "holdfast" } else { &name };
    let _ = rustix::system::sethostname(name.as_bytes());
    let _ = fs::write("/etc/hostname", format!("{name}\n"));
    let _ = fs::write("/etc/hosts", format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n"));
}

/// Brings the large programs of a boot into the page cache. Read in order and ahead they cost next to nothing; read page
/// by page, as they run, they cost seconds.
pub fn read_ahead() {
    for program in [
        "/usr/bin/containerd",
        "/usr/sbin/cryptsetup",
        "/usr/sbin/dockerd",
        "/usr/libexec/docker/cli-plugins/docker-compose",
        "/usr/bin/containerd-shim-runc-v2",
        "/usr/bin/crun",
        "/usr/sbin/docker-proxy",
    ] {
        if let Ok(file) = fs::File::open(program) {
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed);
        }
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A line on the serial console, which the host keeps in a file: never a value of the app's.
pub fn console(line: &str) {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return;
    }
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = writeln!(console, "holdfast: {line}");
    }
}

/// Ends the VM now, without asking anyone. The console says so: a VM that ends without this line fell over.
pub fn power_off() -> ! {
    console("power off");
    rustix::fs::sync();
    loop {
        let _ = rustix::system::reboot(RebootCommand::PowerOff);
        thread::sleep(std::time::Duration::from_secs(1));
    }
}
