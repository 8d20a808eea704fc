//! The root disk of a guest, from Debian packages.
//!
//! The one rule: the host is not touched. Everything happens inside mmdebstrap's own namespaces and temporary folder; what
//! is kept comes out by its copy hook, for root and for an ordinary user alike.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{ImageError, io};

/// Release of the guest, whatever the host runs.
const SUITE: &str = "trixie";
/// What a guest needs beside Debian's essential packages.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "containerd",
    "crun",
    "cryptsetup-bin",
    "curl",
    "docker-compose",
    "docker.io",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "jq",
    "kmod",
    "mount",
    "procps",
    "tzdata",
];
/// Loaded by the initramfs, in this order.
pub const INITRAMFS_MODULES: &[&str] = &["virtio_blk", "overlay", "failover", "net_failover", "virtio_net"];
const SCRIPT: &str = include_str!("rootfs.sh");
const SAMPLE_START: &str = include_str!("../../../../examples/hello/start.sh");
/// Time stamp of everything in the image.
const EPOCH: &str = "1750000000";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Stands for everything that decides what the root disk holds, except the packages' versions.
pub fn inputs(extra: &[std::path::PathBuf]) -> Result<String, ImageError> {
    let mut hasher = Sha256::new();
    for text in [SUITE, &PACKAGES.join(" "), &INITRAMFS_MODULES.join(" "), SCRIPT, SAMPLE_START, EPOCH] {
        hasher.update(text);
        hasher.update([0]);
    }
    for path in extra {
        hasher.update(super::file_digest(path)?);
    }
    Ok(hex::encode(hasher.finalize()))
}

/// Makes `rootfs.img`, `vmlinuz` and `modules/` in `work`, an existing empty folder.
pub fn make(
    work: &Path,
    extra: &[std::path::PathBuf],
    say: &mut dyn FnMut(&str),
    cancelled: &dyn Fn() -> bool,
) -> Result<(), ImageError> {
    let keyring = Path::new(KEYRING);
    if !keyring.is_file() {
        return Err(ImageError::ToolMissing { program: KEYRING, package: "debian-archive-keyring" });
    }
    let start = work.join("start.sh");
    fs::write(&start, SAMPLE_START).map_err(io("writing", &start))?;
    let scratch = work.join("scratch");
    fs::create_dir(&scratch).map_err(io("creating", &scratch))?;
    let root = rustix::process::geteuid().is_root();
    // Killed with us, even when we are killed without a chance to say so.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "mmdebstrap"]);
    command.arg(if root { "--mode=root" } else { "--mode=unshare" });
    command.args(["--variant=essential", "--format=null", "--architectures=amd64"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg(format!("--keyring={KEYRING}"));
    command.args(["--aptopt=Apt::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""]);
    for excluded in ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"] {
        command.arg(format!("--dpkgopt=path-exclude={excluded}"));
    }
    command.arg("--customize-hook=mkdir -p \"$1\"/usr/share/holdfast/images");
    let mut copies = vec![(start.as_path(), "/usr/share/holdfast")];
    copies.extend(extra.iter().map(|path| (path.as_path(), "/usr/share/holdfast/images")));
    for (from, to) in copies {
        let from = from.to_str().filter(|p| !p.contains(['\'', '"', '\\', ' '])).ok_or_else(|| ImageError::Build {
            step: "root disk",
            why: format!("{}: a path that a hook cannot name", from.display()),
        })?;
        command.arg(format!("--customize-hook=copy-in {from} {to}"));
    }
    command.arg(format!("--customize-hook={SCRIPT}"));
    let out = work.display();
    command.arg(format!("--customize-hook=copy-out /mnt/rootfs.img /mnt/vmlinuz /mnt/modules {out}"));
    // The cleaning that mmdebstrap does at the end would come after the disk was made.
    command.arg("--skip=cleanup/apt");
    command.args([SUITE, "/dev/null"]);
    command.env("SOURCE_DATE_EPOCH", EPOCH).env("KERNEL_MODULES", INITRAMFS_MODULES.join(" ")).env("LC_ALL", "C.UTF-8");
    if root {
        // An ordinary user's sub-ids may not enter a private folder; the system's temporary folder then serves.
        command.env("TMPDIR", &scratch);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => ImageError::ToolMissing { program: "setpriv", package: "util-linux" },
        _ => ImageError::Build { step: "root disk", why: e.to_string() },
    })?;
    watch(child, say, cancelled)?;
    let _ = fs::remove_dir_all(&scratch);
    let _ = fs::remove_file(&start);
    Ok(())
}

/// Passes on what the child says that a person wants to hear, and keeps its last words for the case that it fails.
fn watch(mut child: Child, say: &mut dyn FnMut(&str), cancelled: &dyn Fn() -> bool) -> Result<(), ImageError> {
    let (send, lines) = mpsc::channel();
    let outputs: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|s| Box::new(s) as _), child.stderr.take().map(|s| Box::new(s) as _)];
    for output in outputs.into_iter().flatten() {
        let send = send.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let _ = send.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
    }
    drop(send);
    let mut last = std::collections::VecDeque::new();
    let mut told = false;
    loop {
        if cancelled() && !told {
            told = true;
            if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                let news = line.strip_prefix("holdfast: ").or_else(|| {
                    let step = line.strip_prefix("I: ")?.trim_end_matches("...");
                    let long = ["downloading", "extracting", "installing", "running apt-get update"];
                    long.iter().any(|l| step.starts_with(l)).then_some(step)
                });
                if let Some(news) = news {
                    say(news);
                }
                last.push_back(line);
                if last.len() > 15 {
                    last.pop_front();
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(|e| ImageError::Build { step: "root disk", why: e.to_string() })?;
    match status.success() {
        _ if told => Err(ImageError::Cancelled),
        true => Ok(()),
        false if status.code() == Some(127) => {
            Err(ImageError::ToolMissing { program: "mmdebstrap", package: "mmdebstrap" })
        }
        false => Err(ImageError::Build { step: "root disk", why: last.make_contiguous().join("\n") }),
    }
}

/// Removes a folder that a build left, including files that belong to an ordinary user's sub-ids.
pub fn remove(path: &Path) {
    if fs::remove_dir_all(path).is_err() && !rustix::process::geteuid().is_root() {
        let _ = Command::new("mmdebstrap").args(["--unshare-helper", "rm", "-rf", "--"]).arg(path).status();
    }
}
