//! The two disks of a VM: `boot.qcow2`, an overlay over the image's root file, and `data.qcow2`, thin.
//!
//! The one rule: a disk appears under its name only when it is whole. The boot overlay holds nothing of value and is made
//! anew when the image is another one; the data disk is never made twice and never shrinks.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use holdfast_model::vm::VmSpec;
use tokio::process::Command;

use super::argv::{BOOT_DISK, DATA_DISK};
use crate::hypervisor::Fault;
use crate::image::Image;
use crate::{host, record};

/// Names the root file that the boot overlay lies on.
const BOOT_BASE: &str = "boot.base";
const GIB: u64 = 1 << 30;
/// `qemu-img` takes milliseconds; a disk that hangs should not hang the node.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes what is missing, and makes what is there fit. `min_free_gb` guards the making of new data disks.
pub async fn prepare(spec: &VmSpec, image: &Image, folder: &Path, min_free_gb: u64) -> Result<(), Fault> {
    let os = |e: std::io::Error| Fault::os("disks", &e);
    record::private_dir(folder).map_err(os)?;
    let data = folder.join(DATA_DISK);
    match virtual_size(&data) {
        Ok(size) if size < spec.disk_gb * GIB => {
            let wanted = format!("{}G", spec.disk_gb);
            run(&["resize".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), data.as_ref(), wanted.as_ref()])
                .await?;
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let free = host::gb(host::disk_free(folder).map_err(os)?);
            if free < min_free_gb {
                let message =
                    format!("{free} GB of disk are free, less than the {min_free_gb} GB kept for running VMs");
                return Err(Fault::passing("disk_full", message));
            }
            let size = format!("{}G", spec.disk_gb);
            create(folder, DATA_DISK, &[], size.as_ref()).await?;
        }
        Err(error) => return Err(os(error)),
    }
    match &image.rootfs {
        Some(rootfs) => overlay(image, rootfs, folder).await,
        None => Ok(()),
    }
}

async fn overlay(image: &Image, rootfs: &Path, folder: &Path) -> Result<(), Fault> {
    let os = |e: std::io::Error| Fault::os("boot disk", &e);
    let marker = folder.join(BOOT_BASE);
    let base = format!("{}\n{}\n", rootfs.display(), image.info.os_image_hash.as_deref().unwrap_or("-"));
    let boot = folder.join(BOOT_DISK);
    if boot.exists() && fs::read_to_string(&marker).is_ok_and(|text| text == base) {
        return Ok(());
    }
    // Without the marker the overlay counts as foreign, so a crash in between only makes it once more.
    match fs::remove_file(&marker) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(os(e)),
        _ => {}
    }
    let format: &str = if is_qcow2(rootfs).map_err(os)? { "qcow2" } else { "raw" };
    let backing: [&OsStr; 4] = ["-b".as_ref(), rootfs.as_ref(), "-F".as_ref(), format.as_ref()];
    create(folder, BOOT_DISK, &backing, "".as_ref()).await?;
    fs::write(&marker, base).map_err(os)
}

/// Makes a qcow2 under another name and renames it when it is whole.
async fn create(folder: &Path, name: &str, backing: &[&OsStr], size: &OsStr) -> Result<(), Fault> {
    let unfinished = folder.join(format!("{name}.new"));
    let mut args: Vec<&OsStr> = vec!["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref()];
    args.extend(backing);
    args.push(unfinished.as_ref());
    args.extend((!size.is_empty()).then_some(size));
    run(&args).await?;
    let rename = || {
        fs::File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, folder.join(name))?;
        record::sync_dir(folder)
    };
    rename().map_err(|e| Fault::os(name, &e))
}

async fn run(args: &[&OsStr]) -> Result<(), Fault> {
    let mut command = Command::new("qemu-img");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(e)) if e.kind() == ErrorKind::NotFound => {
            return Err(Fault::passing("qemu_missing", "qemu-img is not installed (Debian package qemu-utils)"));
        }
        Ok(Err(e)) => return Err(Fault::os("qemu-img", &e)),
        Err(_) => return Err(Fault::passing("io", "qemu-img did not end in time")),
    };
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let code = if text.contains("No space left") { "disk_full" } else { "qemu_failed" };
    Err(Fault::passing(code, format!("qemu-img: {text}")))
}

const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

fn is_qcow2(path: &Path) -> std::io::Result<bool> {
    let mut magic = [0u8; 4];
    match fs::File::open(path)?.read_exact(&mut magic) {
        Ok(()) => Ok(&magic == QCOW2_MAGIC),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Size that the guest sees, in bytes, from the qcow2 header.
fn virtual_size(path: &Path) -> std::io::Result<u64> {
    let mut header = [0u8; 32];
    fs::File::open(path)?.read_exact(&mut header)?;
    if &header[..4] != QCOW2_MAGIC {
        return Err(std::io::Error::other("the data disk is no qcow2 file"));
    }
    let mut size = [0u8; 8];
    size.copy_from_slice(&header[24..32]);
    Ok(u64::from_be_bytes(size))
}
