//! What the host offers: QEMU, guest images, and the accelerator that really works. Looked at again and again, because an
//! operator installs what is missing while the node runs.
//!
//! The one rule: until a probe guest has booted under KVM the accelerator is TCG, and no VM is started before the verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::image::ImageInfo;
use holdfast_model::node::Accelerator;
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::argv::Kernel;
use super::probe;
use crate::hypervisor::{About, Fault};
use crate::image::{self, Image};

const LOOK: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    /// Absent when QEMU is not installed.
    version: Option<String>,
    images: Vec<ImageInfo>,
    accelerator: Option<Accelerator>,
}

pub struct Facts {
    qemu: PathBuf,
    image_dir: PathBuf,
    /// A verdict is due soon or it is known.
    patience: Duration,
    seen: watch::Receiver<Seen>,
    _task: AbortOnDropHandle<()>,
}

/// What a VM of `image` boots.
pub fn kernel(image: &Image) -> Kernel {
    Kernel {
        kernel: image.kernel.clone(),
        initrd: image.initrd.clone(),
        cmdline: image.metadata.cmdline.clone().unwrap_or_else(|| "console=ttyS0".to_owned()),
        boot_disk: image.rootfs.is_some(),
    }
}

/// The fault of a host without QEMU.
pub fn missing(qemu: &Path) -> Fault {
    Fault::passing("qemu_missing", format!("{} is not installed (Debian package qemu-system-x86)", qemu.display()))
}

impl Facts {
    /// Has looked once when this returns; a probe, which takes seconds, goes on behind it.
    pub async fn open(data_dir: &Path, image_dir: &Path, qemu: &Path, timeout: Duration) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let eyes = Eyes {
            data_dir: data_dir.to_owned(),
            image_dir: image_dir.to_owned(),
            qemu: qemu.to_owned(),
            timeout,
            sender,
        };
        eyes.look().await;
        let task = AbortOnDropHandle::new(tokio::spawn(eyes.watch()));
        let patience = timeout + Duration::from_secs(10);
        Self { qemu: qemu.to_owned(), image_dir: image_dir.to_owned(), patience, seen, _task: task }
    }

    pub fn about(&self) -> About {
        let seen = self.seen.borrow();
        About {
            name: "qemu",
            version: seen.version.clone().unwrap_or_default(),
            accelerator: seen.accelerator.unwrap_or(Accelerator::Tcg),
            tee: false,
        }
    }

    pub fn images(&self) -> Vec<ImageInfo> {
        self.seen.borrow().images.clone()
    }

    /// What makes VMs impossible, in words for the operator.
    pub fn trouble(&self) -> Option<String> {
        let seen = self.seen.borrow();
        if seen.version.is_none() {
            Some(missing(&self.qemu).message)
        } else if seen.images.is_empty() {
            Some(format!("there is no guest image in {} (holdfast image build)", self.image_dir.display()))
        } else if seen.accelerator.is_none() {
            Some("the accelerator is being tried out".to_owned())
        } else {
            None
        }
    }

    /// The accelerator, once it is known.
    pub async fn accelerator(&self) -> Result<Accelerator, Fault> {
        let mut seen = self.seen.clone();
        let known = tokio::time::timeout(self.patience, seen.wait_for(|s| s.accelerator.is_some())).await;
        match known {
            Ok(Ok(seen)) => Ok(seen.accelerator.unwrap_or(Accelerator::Tcg)),
            _ if self.seen.borrow().version.is_none() => Err(missing(&self.qemu)),
            _ => Err(Fault::passing("qemu_failed", "the accelerator has not been tried out yet")),
        }
    }
}

struct Eyes {
    data_dir: PathBuf,
    image_dir: PathBuf,
    qemu: PathBuf,
    timeout: Duration,
    sender: watch::Sender<Seen>,
}

impl Eyes {
    async fn watch(self) {
        loop {
            self.try_out().await;
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
    }

    async fn look(&self) {
        let image_dir = self.image_dir.clone();
        let images = tokio::task::spawn_blocking(move || image::list(&image_dir)).await;
        let images = match images {
            Ok(Ok(images)) => images,
            Ok(Err(error)) => {
                warn!(%error, "the guest images cannot be listed");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        let version = self.sender.borrow().version.clone();
        let version = match version {
            Some(version) => Some(version),
            None => version_of(&self.qemu).await,
        };
        let accelerator = self.sender.borrow().accelerator;
        let accelerator = accelerator.or_else(|| self.known(version.as_deref()?, &images));
        let seen = Seen { version, images, accelerator };
        self.sender.send_if_modified(|old| std::mem::replace(old, seen.clone()) != seen);
    }

    /// What can be said without booting anything.
    fn known(&self, version: &str, images: &[ImageInfo]) -> Option<Accelerator> {
        if !probe::kvm_present() {
            return Some(Accelerator::Tcg);
        }
        images.iter().find_map(|image| probe::known(&self.data_dir, &self.image_dir, version, &hash(image)))
    }

    /// Boots the probe guest of the newest image, when that is still to be done.
    async fn try_out(&self) {
        let seen = self.sender.borrow().clone();
        let (Some(version), None) = (&seen.version, seen.accelerator) else { return };
        let Some(info) = seen.images.last() else { return };
        match image::load(&self.image_dir, &info.name) {
            Ok(image) => {
                let kernel = kernel(&image);
                let verdict = probe::probe(probe::Trial {
                    data_dir: &self.data_dir,
                    image_dir: &self.image_dir,
                    qemu: &self.qemu,
                    qemu_version: version,
                    image_hash: &hash(info),
                    kernel: &kernel,
                    timeout: self.timeout,
                })
                .await;
                self.sender.send_modify(|seen| seen.accelerator = Some(verdict));
            }
            Err(error) => warn!(%error, "the probe guest cannot be loaded"),
        }
    }
}

fn hash(image: &ImageInfo) -> String {
    image.os_image_hash.clone().unwrap_or_else(|| format!("{} {}", image.name, image.version))
}

/// `QEMU emulator version 7.2.22 (Debian ...)` gives `7.2.22`.
async fn version_of(qemu: &Path) -> Option<String> {
    let mut command = Command::new(qemu);
    command.arg("--version").kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(10), command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().skip_while(|w| *w != "version").nth(1)?;
    Some(version.to_owned())
}
