//! Debian packages that the product and its tests need.
//!
//! The one rule: install what is missing and nothing else. A program that is there is used as it is, whatever it came from.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ui;

/// Something on the machine, the package that brings it, and what for.
pub struct Need {
    /// A program's name, an absolute path, or `python3:` and a module.
    thing: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn need(thing: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { thing, package, why }
}

/// To run VMs and to build their image.
pub const RUN: &[Need] = &[
    need("cc", "gcc", "links Rust programs and compiles SQLite"),
    need("make", "make", "compiles the allocator"),
    need("/usr/include/stdio.h", "libc6-dev", "headers for the C compiler; static guest agent"),
    need("qemu-system-x86_64", "qemu-system-x86", "runs the VMs"),
    need("qemu-img", "qemu-utils", "makes their disks"),
    need("mmdebstrap", "mmdebstrap", "builds the guest image from Debian packages"),
    need(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "checks those packages' signatures",
    ),
    need("mke2fs", "e2fsprogs", "makes the guest's file systems without root mounts"),
];

/// Besides, for the end-to-end tests.
pub const TEST: &[Need] = &[
    need("node", "nodejs", "runs the official command line client and the TypeScript SDK"),
    need("npm", "npm", "installs them"),
    need("python3", "python3", "runs the official Python SDK"),
    need("python3:ensurepip", "python3-venv", "installs it"),
];

/// These two come from one source package. From different suites each removes the other.
const QEMU: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

pub fn install(needs: &[&[Need]]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().copied().flatten().filter(|need| !is_there(need.thing)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        let list: Vec<_> = missing.iter().map(|n| format!("{} ({})", n.thing, n.why)).collect();
        bail!("missing: {}. This system has no apt-get; install them by its own means.", list.join(", "));
    }
    ui::heading("Packages that are missing");
    for need in &missing {
        ui::say(format!("  {:24} {}", need.package, need.why));
    }
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if packages.iter().any(|package| QEMU.contains(package)) {
        packages.retain(|package| !QEMU.contains(package));
        packages.extend(QEMU);
    }
    packages.sort_unstable();
    packages.dedup();
    ui::run_quietly("apt-get update", &mut apt(&["update", "-q"])?)?;
    if let Err(error) = get(&packages, &[]) {
        if !packages.contains(&QEMU[0]) {
            return Err(error);
        }
        get_from_one_suite(&packages).map_err(|second| error.context(format!("{second:#}")))?;
    }
    let left: Vec<_> = missing.iter().filter(|need| !is_there(need.thing)).map(|need| need.thing).collect();
    if left.is_empty() { Ok(()) } else { bail!("apt-get succeeded, and still there is no {}", left.join(", ")) }
}

fn get(packages: &[&str], options: &[&str]) -> Result<()> {
    let fixed = ["install", "-q", "-y", "--no-install-recommends"];
    let args: Vec<&str> = fixed.iter().chain(options).chain(packages).copied().collect();
    ui::run_quietly("apt-get install", &mut apt(&args)?)
}

/// One of the QEMU packages is there in a build that no configured source has any more, so that the other one does not fit
/// it. Takes both from the suite that apt would take the missing one from, even if that is a step back.
fn get_from_one_suite(packages: &[&str]) -> Result<()> {
    let suite = suite_of(QEMU[0]).context("no source offers qemu-system-x86")?;
    let pinned: Vec<String> = packages
        .iter()
        .map(|package| if QEMU.contains(package) { format!("{package}/{suite}") } else { (*package).to_owned() })
        .collect();
    ui::say(format!("  again, with both QEMU packages from {suite}"));
    get(&pinned.iter().map(String::as_str).collect::<Vec<_>>(), &["--allow-downgrades"])
}

/// The suite of the newest version that a source still has, from `apt-cache madison`: "package | version | source suite/area".
fn suite_of(package: &str) -> Option<String> {
    let output = Command::new("apt-cache").args(["madison", package]).output().ok()?;
    parse_suite(&String::from_utf8_lossy(&output.stdout))
}

fn parse_suite(madison: &str) -> Option<String> {
    let source = madison.lines().next()?.split('|').nth(2)?;
    Some(source.split_whitespace().nth(1)?.split('/').next()?.to_owned())
}

fn apt(args: &[&str]) -> Result<Command> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else if find("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        // sudo may ask for a password; it does so on the terminal itself.
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    } else {
        bail!("not root, and there is no sudo; as root run: apt-get {}", args.join(" "));
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
    Ok(command)
}

fn is_there(thing: &str) -> bool {
    match thing.split_once(':') {
        Some((python, module)) => {
            let found = Command::new(python).args(["-c", &format!("import {module}")]).output();
            found.is_ok_and(|output| output.status.success())
        }
        None if thing.starts_with('/') => Path::new(thing).exists(),
        None => find(thing).is_some(),
    }
}

/// A program in PATH, or where Debian keeps those of the administrator.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_suite() {
        let text = " qemu-utils | 1:7.2+dfsg-7 | http://mirror/debian bookworm/main amd64 Packages\n\
                    qemu-utils | 1:7.2+dfsg-6 | http://mirror/debian other/main amd64 Packages\n";
        assert_eq!(parse_suite(text).as_deref(), Some("bookworm"));
        assert_eq!(parse_suite(""), None);
    }
}
