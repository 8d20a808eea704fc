//! Whether KVM really works: a tiny guest is booted under it once, and the verdict kept.
//!
//! The one rule: `/dev/kvm` proves nothing. On hosts with `kvm_pvm` and some nested ones it opens, makes VMs, and their
//! kernels never get anywhere. Only a guest that spoke counts; everything else means TCG.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use holdfast_model::compose::sha256_hex;
use holdfast_model::guest::PROBE_MARKER;
use holdfast_model::node::Accelerator;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tracing::{info, warn};

use super::argv::{self, Kernel};
use super::process;
use crate::{host, record};

/// Name of the verdict in the node's own folder, and in the folder of images, which the nodes of a user share. The dot
/// keeps it from being taken for an image.
const VERDICT: &str = "accelerator.json";
const SHARED_VERDICT: &str = ".accelerator.json";

#[derive(Serialize, Deserialize)]
struct Verdict {
    /// What the verdict depends on, hashed.
    key: String,
    accelerator: Accelerator,
}

/// Where verdicts are kept.
fn places(data_dir: &Path, image_dir: &Path) -> [PathBuf; 2] {
    [data_dir.join(VERDICT), image_dir.join(SHARED_VERDICT)]
}

/// What the verdict depends on: a new QEMU, host, host kernel or guest image is tried anew.
fn key(qemu_version: &str, image_hash: &str) -> String {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    sha256_hex(format!("{qemu_version}\n{}\n{}\n{image_hash}", host::kernel_release(), machine.trim()))
}

/// True when there is something to try. Without it TCG needs no proof.
pub fn kvm_present() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The verdict of an earlier probe under the same circumstances.
pub fn known(data_dir: &Path, image_dir: &Path, qemu_version: &str, image_hash: &str) -> Option<Accelerator> {
    let key = key(qemu_version, image_hash);
    let read = |path: PathBuf| serde_json::from_slice::<Verdict>(&std::fs::read(path).ok()?).ok();
    let verdicts = places(data_dir, image_dir).into_iter().filter_map(read);
    verdicts.filter(|v| v.key == key).map(|v| v.accelerator).next()
}

/// A guest to try, and under which circumstances.
pub struct Trial<'a> {
    pub data_dir: &'a Path,
    pub image_dir: &'a Path,
    pub qemu: &'a Path,
    pub qemu_version: &'a str,
    pub image_hash: &'a str,
    pub kernel: &'a Kernel,
    pub timeout: Duration,
}

/// Boots the probe guest under KVM, waits for its word, and keeps the verdict.
pub async fn probe(trial: Trial<'_>) -> Accelerator {
    let timeout = trial.timeout;
    info!(seconds = timeout.as_secs(), "trying whether guests boot under KVM");
    let accelerator = match tokio::time::timeout(timeout, boots(trial.qemu, trial.kernel)).await {
        Ok(Ok(true)) => Accelerator::Kvm,
        Ok(Ok(false)) => {
            warn!("the probe guest ended under KVM without a word; using TCG, about ten times slower");
            Accelerator::Tcg
        }
        Ok(Err(error)) => {
            warn!(%error, "the probe guest could not be started; using TCG, about ten times slower");
            Accelerator::Tcg
        }
        Err(_) => {
            warn!("the probe guest never got anywhere under KVM; using TCG, about ten times slower");
            Accelerator::Tcg
        }
    };
    let verdict = Verdict { key: key(trial.qemu_version, trial.image_hash), accelerator };
    for path in places(trial.data_dir, trial.image_dir) {
        if let Err(error) = record::write_durable(&path, &verdict) {
            warn!(%error, path = %path.display(), "the verdict cannot be kept here");
        }
    }
    accelerator
}

/// True when the marker appeared on the console.
async fn boots(qemu: &Path, kernel: &Kernel) -> std::io::Result<bool> {
    let mut command = Command::new(qemu);
    command.args(argv::probe(kernel, Accelerator::Kvm)).kill_on_drop(true);
    process::die_with_parent(&mut command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let Some(mut console) = child.stdout.take() else { return Ok(false) };
    let (mut seen, mut block) = (Vec::new(), [0u8; 4096]);
    loop {
        let read = console.read(&mut block).await?;
        if read == 0 {
            return Ok(false);
        }
        seen.extend_from_slice(&block[..read]);
        if seen.windows(PROBE_MARKER.len()).any(|w| w == PROBE_MARKER.as_bytes()) {
            return Ok(true);
        }
        // The kernel repeats its command line, and so the argument, but never the marker.
        let keep = seen.len().saturating_sub(PROBE_MARKER.len());
        seen.drain(..keep);
    }
}
