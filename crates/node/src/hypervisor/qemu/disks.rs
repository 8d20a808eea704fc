//! The two disks of a VM: `boot.qcow2`, an overlay over the image's root file, and `data.qcow2`, thin.
//!
//! The one rule: a disk appears under its name only when it is whole. The boot overlay holds nothing of value and is made
//! anew when the image is another one; the data disk is never made twice and never shrinks. A spec that takes a growth
//! back finds the disk as large as it is by then; one that wants less than the disk was made with is refused.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use holdfast_model::node::DISK_FULL;
use holdfast_model::vm::VmSpec;
use tokio::process::Command;

use super::argv::{BOOT_DISK, DATA_DISK};
use super::process;
use crate::hypervisor::Fault;
use crate::image::Image;
use crate::{host, record};

/// Names the root file that the boot overlay lies on.
const BOOT_BASE: &str = "boot.base";
/// Size in GB that the data disk was made with.
const DATA_MADE: &str = "data.made";
const GIB: u64 = 1 << 30;
/// `qemu-img` takes milliseconds; a disk that hangs should not hang the node.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes what is missing, and makes what is there fit. `min_free_gb` guards the making of new data disks.
pub async fn prepare(spec: &VmSpec, image: &Image, folder: &Path, min_free_gb: u64) -> Result<(), Fault> {
    record::private_dir(folder).map_err(|e| Fault::os("disks", &e))?;
    // Neither is dropped in the middle because of the other.
    let (data, boot) = tokio::join!(data(spec, folder, min_free_gb), boot(image, folder));
    data.and(boot)
}

/// Makes the boot disk, if it is not that of the image as it is now.
pub async fn boot(image: &Image, folder: &Path) -> Result<(), Fault> {
    match &image.rootfs {
        Some(rootfs) => overlay(image, rootfs, folder).await,
        None => Ok(()),
    }
}

async fn data(spec: &VmSpec, folder: &Path, min_free_gb: u64) -> Result<(), Fault> {
    let os = |e: std::io::Error| Fault::os("data disk", &e);
    let path = folder.join(DATA_DISK);
    let size = format!("{}G", spec.disk_gb);
    match virtual_size(&path) {
        Ok(now) => {
            let made = made_with(folder, now / GIB).map_err(os)?;
            if spec.disk_gb < made {
                let message = format!("the data disk was made with {made} GB and cannot shrink to {}", spec.disk_gb);
                return Err(Fault::lasting("disk_shrink", message));
            }
            if now >= spec.disk_gb * GIB {
                return Ok(());
            }
            holdfast_failpoint::hit("disk.grow");
            let args: [&OsStr; 6] =
                ["resize".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_ref(), size.as_ref()];
            run(&args).await?;
            holdfast_failpoint::hit("disk.grown");
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let free = host::gb(host::disk_free(folder).map_err(os)?);
            if free < min_free_gb {
                let message =
                    format!("{free} GB of disk are free, less than the {min_free_gb} GB kept for running VMs");
                return Err(Fault::passing(DISK_FULL, message));
            }
            // Of a disk that was never finished.
            let _ = fs::remove_file(folder.join(DATA_MADE));
            create(folder, DATA_DISK, &[], size.as_ref()).await?;
            made_with(folder, spec.disk_gb).map(drop).map_err(os)
        }
        Err(error) => Err(os(error)),
    }
}

/// Size in GB that the data disk was made with; it is `now` when nobody has written it down yet, because a disk grows
/// only after that.
fn made_with(folder: &Path, now: u64) -> std::io::Result<u64> {
    let path = folder.join(DATA_MADE);
    if let Ok(text) = fs::read_to_string(&path)
        && let Ok(made) = text.trim().parse()
    {
        return Ok(made);
    }
    let unfinished = folder.join(format!("{DATA_MADE}.new"));
    fs::write(&unfinished, format!("{now}\n"))?;
    fs::File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, &path)?;
    record::sync_dir(folder)?;
    Ok(now)
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
    holdfast_failpoint::hit("disk.unnamed");
    let rename = || {
        fs::File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, folder.join(name))?;
        record::sync_dir(folder)
    };
    rename().map_err(|e| Fault::os(name, &e))?;
    holdfast_failpoint::hit("disk.made");
    Ok(())
}

async fn run(args: &[&OsStr]) -> Result<(), Fault> {
    let mut command = Command::new("qemu-img");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    process::die_with_parent(&mut command);
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
    let code = if text.contains("No space left") { DISK_FULL } else { "qemu_failed" };
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use holdfast_model::image::{ImageInfo, ImageMetadata};

    use super::*;

    fn image(rootfs: PathBuf, hash: &str) -> Image {
        let name = "holdfast-1".to_owned();
        let version = "1.0.0".to_owned();
        let os_image_hash = Some(hash.to_owned());
        Image {
            info: ImageInfo { name, version: version.clone(), is_dev: false, os_image_hash },
            metadata: ImageMetadata {
                kernel: "kernel".into(),
                initrd: "initrd".into(),
                cmdline: None,
                rootfs: Some("rootfs".into()),
                bios: None,
                rootfs_hash: None,
                shared_ro: true,
                version,
                is_dev: false,
            },
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            rootfs: Some(rootfs),
            bios: None,
        }
    }

    fn spec(disk_gb: u64) -> VmSpec {
        let spec = serde_json::json!({
            "uuid": uuid::Uuid::nil(), "name": "a", "app_id": "", "instance_id": "", "image": "holdfast-1", "vcpu": 1,
            "memory_mb": 64, "disk_gb": disk_gb, "compose_hash": "", "app_compose": "{}",
        });
        serde_json::from_value(spec).expect("a spec")
    }

    #[tokio::test]
    async fn the_boot_disk_follows_its_image_and_the_data_disk_only_grows() {
        if std::process::Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("qemu-img is not installed: not tested");
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let (rootfs, folder) = (dir.path().join("rootfs.img"), dir.path().join("vm"));
        fs::write(&rootfs, vec![0u8; 1 << 20]).expect("write");
        let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(folder.join(name)).expect("stat"));
        prepare(&spec(2), &image(rootfs.clone(), "one"), &folder, 0).await.expect("prepare");
        let (boot, data) = (inode(BOOT_DISK), inode(DATA_DISK));
        prepare(&spec(3), &image(rootfs.clone(), "one"), &folder, u64::MAX).await.expect("prepare again");
        assert_eq!((inode(BOOT_DISK), inode(DATA_DISK)), (boot, data));
        assert_eq!(virtual_size(&folder.join(DATA_DISK)).expect("size"), 3 * GIB);
        // An update that is taken back wants the size before; the disk stays as large as it is.
        prepare(&spec(2), &image(rootfs.clone(), "two"), &folder, 0).await.expect("another image");
        assert_ne!(inode(BOOT_DISK), boot);
        assert_eq!((inode(DATA_DISK), virtual_size(&folder.join(DATA_DISK)).expect("size")), (data, 3 * GIB));
        // Less than it ever had is refused, and changes nothing.
        let fault = prepare(&spec(1), &image(rootfs.clone(), "two"), &folder, 0).await.expect_err("a smaller disk");
        assert_eq!((fault.code, fault.retryable), ("disk_shrink", false));
        assert_eq!((inode(DATA_DISK), virtual_size(&folder.join(DATA_DISK)).expect("size")), (data, 3 * GIB));
        // Killed between the growth of a disk and anything after it, or of a disk that an older version made.
        prepare(&spec(4), &image(rootfs.clone(), "two"), &folder, 0).await.expect("grown again");
        fs::remove_file(folder.join(DATA_MADE)).expect("remove");
        prepare(&spec(5), &image(rootfs.clone(), "two"), &folder, 0).await.expect("grown again");
        assert_eq!(fs::read_to_string(folder.join(DATA_MADE)).expect("read"), "4\n");
        // Killed between the overlay and its marker: it is made once more.
        let boot = inode(BOOT_DISK);
        fs::remove_file(folder.join(BOOT_BASE)).expect("remove");
        prepare(&spec(5), &image(rootfs, "two"), &folder, 0).await.expect("prepare");
        assert_ne!(inode(BOOT_DISK), boot);
    }
}
