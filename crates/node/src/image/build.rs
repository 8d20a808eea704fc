//! Builds a guest image, once for the same inputs.
//!
//! The one rule: an image folder is whole or absent. Everything is made in a hidden folder beside it, which goes away with
//! the build however that ends (at the latest when the next one starts), and one rename shows the result.
//!
//! ```text
//! image_dir/.build.lock          held for the whole build
//! image_dir/.build-<pid>/        everything that is being made
//! image_dir/.base-<inputs>/      root disk, kernel and modules: the slow part, which the agent's bytes do not change
//! image_dir/holdfast-<version>/  the image; its disk is the base's, by hard link
//! ```

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_model::image::{ImageInfo, ImageMetadata};
use sha2::{Digest, Sha256};

use super::cpio::Cpio;
use super::{DIGEST, ImageError, METADATA, SUMS, check_name, file_digest, io, load, rootfs};

const INPUTS: &str = "inputs.txt";
const KERNEL: &str = "kernel";
const INITRD: &str = "initramfs.cpio.gz";
const ROOTFS: &str = "rootfs.img";

/// Kernel arguments of every guest; each is argued for in ADR 0010.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 no_timer_check audit=0 cryptomgr.notests nowatchdog apparmor=0 \
                       net.ifnames=0 8250.nr_uarts=1";

/// The statically linked `holdfast-guest`.
#[derive(Debug, Clone)]
pub enum Agent {
    Bytes(Vec<u8>),
    Path(PathBuf),
}

pub struct BuildOptions<'a> {
    pub image_dir: PathBuf,
    pub agent: Agent,
    /// Default: [`image_name`].
    pub name: Option<String>,
    /// docker-archive tars that every guest loads on the first boot of its data disk.
    pub extra_containers: Vec<PathBuf>,
    /// Called with a line at the start of each part that takes a while.
    pub progress: &'a mut dyn FnMut(&str),
    /// Asked a few times a second; true ends the build and removes what it made.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// The name of the image that this version builds.
pub fn image_name() -> String {
    format!("holdfast-{}", holdfast_model::VERSION)
}

/// Removes its folder when the build is over, whatever way.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        rootfs::remove(&self.0);
    }
}

/// Builds the image, or finds the one that the same inputs made.
pub fn build(options: BuildOptions<'_>) -> Result<ImageInfo, ImageError> {
    let BuildOptions { image_dir, agent, name, extra_containers, progress, cancelled } = options;
    let name = name.unwrap_or_else(image_name);
    check_name(&name)?;
    let agent = match agent {
        Agent::Bytes(bytes) => bytes,
        Agent::Path(path) => fs::read(&path).map_err(io("reading", &path))?,
    };
    fs::create_dir_all(&image_dir).map_err(io("creating", &image_dir))?;
    let image_dir = image_dir.canonicalize().map_err(io("opening", &image_dir))?;
    let _lock = lock(&image_dir, progress)?;
    remove_left_overs(&image_dir);

    let base_inputs = rootfs::inputs(&extra_containers)?;
    let mut hasher = Sha256::new();
    for part in [base_inputs.as_bytes(), CMDLINE.as_bytes(), holdfast_model::VERSION.as_bytes(), &agent] {
        hasher.update(Sha256::digest(part));
    }
    let inputs = hex::encode(hasher.finalize());
    let folder = image_dir.join(&name);
    if fs::read_to_string(folder.join(INPUTS)).is_ok_and(|i| i == inputs) {
        progress("guest image is up to date");
        return load(&image_dir, &name).map(|image| image.info);
    }

    let work = Work(image_dir.join(format!(".build-{}", std::process::id())));
    fs::create_dir(&work.0).map_err(io("creating", &work.0))?;
    let base = image_dir.join(format!(".base-{}", &base_inputs[..16]));
    if !base.join(ROOTFS).is_file() {
        progress("building the guest's root disk from Debian packages (about a minute, cached afterwards)");
        make_base(&work.0.join("base"), &base, &extra_containers, progress, cancelled)?;
    }
    if cancelled() {
        return Err(ImageError::Cancelled);
    }
    progress("assembling the guest image");
    let made = work.0.join("image");
    assemble(&made, &base, &agent)?;
    write(&made.join(INPUTS), inputs.as_bytes())?;
    if folder.exists() {
        // Hidden first, so that the name is never a folder that is half removed.
        let old = work.0.join("old");
        fs::rename(&folder, &old).map_err(io("replacing", &folder))?;
    }
    fs::rename(&made, &folder).map_err(io("creating", &folder))?;
    remove_other_bases(&image_dir, &base);
    load(&image_dir, &name).map(|image| image.info)
}

fn lock(image_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<File, ImageError> {
    let path = image_dir.join(".build.lock");
    let file = File::options().create(true).append(true).open(&path).map_err(io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => progress("waiting for another build of guest images to end"),
        Err(TryLockError::Error(e)) => return Err(io("locking", &path)(e)),
    }
    file.lock().map_err(io("locking", &path))?;
    Ok(file)
}

/// What a build that was killed left: nobody else can be building, because we hold the lock.
fn remove_left_overs(image_dir: &Path) {
    for entry in fs::read_dir(image_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".build-") {
            rootfs::remove(&entry.path());
        }
    }
}

fn remove_other_bases(image_dir: &Path, keep: &Path) {
    for entry in fs::read_dir(image_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".base-") && entry.path() != keep {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn make_base(
    work: &Path,
    base: &Path,
    extra: &[PathBuf],
    progress: &mut dyn FnMut(&str),
    cancelled: &dyn Fn() -> bool,
) -> Result<(), ImageError> {
    fs::create_dir(work).map_err(io("creating", work))?;
    rootfs::make(work, extra, progress, cancelled)?;
    if base.exists() {
        rootfs::remove(base);
    }
    fs::rename(work, base).map_err(io("creating", base))
}

/// Puts the folder together: links the disk, makes the initramfs, writes metadata and digests.
fn assemble(made: &Path, base: &Path, agent: &[u8]) -> Result<(), ImageError> {
    fs::create_dir(made).map_err(io("creating", made))?;
    for (from, to) in [("vmlinuz", KERNEL), (ROOTFS, ROOTFS)] {
        let (from, to) = (base.join(from), made.join(to));
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).map_err(io("copying", &from))?;
    }
    write(&made.join(INITRD), &initramfs(base, agent)?)?;
    let rootfs_hash = file_digest(&made.join(ROOTFS))?;
    let metadata = ImageMetadata {
        kernel: KERNEL.to_owned(),
        initrd: INITRD.to_owned(),
        cmdline: Some(CMDLINE.to_owned()),
        rootfs: Some(ROOTFS.to_owned()),
        bios: None,
        rootfs_hash: Some(rootfs_hash.clone()),
        shared_ro: true,
        version: holdfast_model::VERSION.to_owned(),
        is_dev: false,
    };
    let text = serde_json::to_string_pretty(&metadata)
        .map_err(|e| ImageError::Build { step: "metadata", why: e.to_string() })?;
    write(&made.join(METADATA), text.as_bytes())?;
    let mut sums = String::new();
    for file in [INITRD, KERNEL, METADATA] {
        sums.push_str(&format!("{}  {file}\n", file_digest(&made.join(file))?));
    }
    sums.push_str(&format!("{rootfs_hash}  {ROOTFS}\n"));
    write(&made.join(DIGEST), hex::encode(Sha256::digest(&sums)).as_bytes())?;
    write(&made.join(SUMS), sums.as_bytes())
}

fn initramfs(base: &Path, agent: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut archive = Cpio::default();
    for directory in ["dev", "modules"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("init", true, agent);
    let mut order = String::new();
    for module in rootfs::INITRAMFS_MODULES {
        let path = base.join("modules").join(format!("{module}.ko"));
        archive.file(&format!("modules/{module}.ko"), false, &fs::read(&path).map_err(io("reading", &path))?);
        order.push_str(&format!("{module}.ko\n"));
    }
    archive.file("modules/order", false, order.as_bytes());
    compress(archive.finish())
}

/// gzip without a name or a time in its header.
fn compress(data: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    let failed = |why: String| ImageError::Build { step: "initramfs", why };
    let mut child = Command::new("gzip")
        .args(["-n", "-6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|_| ImageError::ToolMissing { program: "gzip", package: "gzip" })?;
    let stdin = child.stdin.take();
    let writer = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&data)));
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    match (output.status.success(), writer.join()) {
        (true, Ok(Some(Ok(())))) => Ok(output.stdout),
        (_, _) => Err(failed(format!("gzip ended with {}", output.status))),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    fs::write(path, bytes).map_err(io("writing", path))
}
