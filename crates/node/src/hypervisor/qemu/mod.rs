//! VMs as QEMU processes.
//!
//! The one rule: a QEMU belongs to its folder, not to the node that started it. Which process runs a VM is found out from
//! the host (record, command line, working directory) and never assumed; before a start every other process of that
//! folder is ended, and QEMU's own locks on pid file and disks stand behind that.
//!
//! ```text
//!   <data_dir>/vms/<uuid>/  desired.json runtime.json          the node's record
//!                           boot.qcow2 boot.base               disks, and what they were made of
//!                           data.qcow2 data.made
//!                           qmp.sock agent.sock qemu.pid       of the running process
//!                           serial.log stdout.log stderr.log   rotated to .1 .2 .3, each with its .times
//! ```

mod agent;
mod argv;
mod disks;
mod facts;
mod logs;
mod probe;
mod process;
mod qmp;
mod times;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_model::guest::{Container, LogOptions, SystemStats};
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{Capacity, DISK_FULL, DesiredVm, Health, LogSource, StreamError};
use holdfast_model::vm::VmSpec;
use tokio::process::Child;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use uuid::Uuid;

#[cfg(feature = "fuzz")]
pub use self::agent::fuzz;
use self::agent::{Agent, Line, Peer};
use self::argv::{SERIAL_LOG, STDERR_LOG, STDOUT_LOG};
use self::facts::Facts;
use self::process::Handle;
use super::{About, Adopted, Ended, Fault, Hypervisor, KeySource, LogSink, Started, View, spec_of, stream_error};
use crate::image::{self, Image, ImageError};
use crate::record::{GuestView, Layout, Life, Records, Runtime};
use crate::{Error, NodeConfig, clock, host};

/// How long QEMU may take until it answers on QMP.
const START: Duration = Duration::from_secs(30);
/// How long QEMU may take to write back its disks when told to quit, and the kernel to end it when killed.
const QUIT: Duration = Duration::from_secs(3);
const KILL: Duration = Duration::from_secs(10);
/// How long the last words of a guest may take to be read after its end.
const LAST_WORDS: Duration = Duration::from_millis(300);
const ROTATION: Duration = Duration::from_secs(1);
/// How often it is looked whether a machine waits for room on the disk, and the bytes that must be free for it to go on.
const RESUMPTION: Duration = Duration::from_secs(5);
const ROOM: u64 = 64 << 20;
/// Disks that are made at once.
const PREPARING: usize = 4;
/// The guest's word for a power-off in good order.
const POWERING_OFF: &str = "powering off";

/// A running QEMU, as long as it is watched.
struct Machine {
    handle: Arc<Handle>,
    agent: Agent,
    /// What its guest should run.
    wanted: watch::Sender<Arc<DesiredVm>>,
    view: watch::Sender<View>,
    _watch: AbortOnDropHandle<()>,
}

type Machines = Arc<Mutex<HashMap<Uuid, Machine>>>;

/// See the module.
pub struct Qemu {
    data_dir: PathBuf,
    image_dir: PathBuf,
    binary: PathBuf,
    reserve_memory_mb: u64,
    min_free_disk_gb: u64,
    slots: u32,
    records: Records,
    keys: Arc<dyn KeySource>,
    facts: Facts,
    machines: Machines,
    preparing: Semaphore,
    _upkeep: AbortOnDropHandle<()>,
}

impl Qemu {
    /// Nothing of the host needs to be in order for this: what is missing is told by [`Hypervisor::health`].
    pub async fn open(config: &NodeConfig, keys: Arc<dyn KeySource>) -> Result<Self, Error> {
        // Absolute, because QEMU runs in a folder of its own, and as /proc shows it.
        let data_dir = process::real(&config.data_dir);
        let image_dir = std::path::absolute(&config.image_dir).map_err(Error::io("cannot find", &config.image_dir))?;
        let vms = data_dir.join("vms");
        let records = Records::open(vms.clone(), Layout::Folders).map_err(Error::io("cannot open", &vms))?;
        let machines = Machines::default();
        let (rotation, resumption) =
            (rotation(records.clone(), machines.clone()), resumption(records.clone(), machines.clone()));
        let upkeep = async { tokio::join!(rotation, resumption) };
        let facts = Facts::open(&data_dir, &image_dir, &config.qemu, config.probe_timeout).await;
        Ok(Self {
            data_dir,
            image_dir,
            binary: config.qemu.clone(),
            reserve_memory_mb: config.reserve_memory_mb,
            min_free_disk_gb: config.min_free_disk_gb,
            slots: config.slots.unwrap_or(64),
            records,
            keys,
            facts,
            machines,
            preparing: Semaphore::new(PREPARING),
            _upkeep: AbortOnDropHandle::new(tokio::spawn(async move {
                upkeep.await;
            })),
        })
    }

    fn image(&self, name: &str) -> Result<Image, Fault> {
        image::load(&self.image_dir, name).map_err(|error| match error {
            ImageError::BadName(_) => Fault::lasting("image_missing", error.to_string()),
            _ => Fault::passing("image_missing", error.to_string()),
        })
    }

    /// Ends every process of the VM that is not watched, e.g. one that a killed node left half started.
    async fn end_strays(&self, uuid: Uuid) -> Result<(), Fault> {
        let folder = self.records.folder(uuid);
        let found = tokio::task::spawn_blocking(move || process::scan(uuid, &folder)).await.unwrap_or_default();
        for handle in found {
            warn!(vm = %uuid, pid = handle.process.pid, "a QEMU that nobody watched is ended");
            end(&handle, None).await?;
        }
        Ok(())
    }

    /// Watches a process, and talks to its guest.
    fn take(
        &self,
        desired: &Arc<DesiredVm>,
        handle: Handle,
        child: Option<Child>,
        guest: GuestView,
    ) -> watch::Receiver<View> {
        let uuid = desired.uuid;
        let (sender, view) = watch::channel(View { guest, ..View::default() });
        let folder = self.records.folder(uuid);
        let handle = Arc::new(handle);
        let (wanted, wanted_by_guest) = watch::channel(desired.clone());
        let agent = Agent::open(Peer {
            uuid,
            wanted: wanted_by_guest,
            folder: folder.clone(),
            keys: self.keys.clone(),
            view: sender.clone(),
        });
        let watching = watch_end(handle.clone(), child, agent.drained(), sender.clone(), folder);
        let machine =
            Machine { handle, agent, wanted, view: sender, _watch: AbortOnDropHandle::new(tokio::spawn(watching)) };
        lock(&self.machines).insert(uuid, machine);
        view
    }

    /// Waits until QEMU answers on QMP. Its error, if it ends before that.
    async fn answers(&self, child: &mut Child, folder: &Path, said: u64) -> Result<(), Fault> {
        let deadline = Instant::now() + START;
        let mut pause = Duration::from_millis(4);
        loop {
            tokio::select! {
                ended = child.wait() => {
                    let status = ended.map_or_else(|e| e.to_string(), |s| s.to_string());
                    return Err(classify(&status, &process::last_lines(&folder.join(STDERR_LOG), said)));
                }
                () = tokio::time::sleep(pause) => {}
            }
            if qmp::execute(folder, "query-status").await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Fault::passing("qemu_failed", "QEMU did not answer on QMP in time"));
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn line(&self, uuid: Uuid) -> Result<Line, StreamError> {
        let machines = lock(&self.machines);
        match machines.get(&uuid) {
            Some(machine) => Ok(machine.agent.line()),
            None if self.records.folder(uuid).is_dir() => Err(stream_error("not_running", "the VM does not run")),
            None => Err(stream_error("no_such_vm", "nothing of this VM is on the node")),
        }
    }
}

fn lock(machines: &Machines) -> MutexGuard<'_, HashMap<Uuid, Machine>> {
    machines.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Ends a process: by QMP when `folder` is given, so that disks are written back, else and at last by force.
async fn end(handle: &Handle, folder: Option<&Path>) -> Result<(), Fault> {
    if let Some(folder) = folder
        && qmp::execute(folder, "quit").await.is_ok()
        && tokio::time::timeout(QUIT, handle.ended()).await.is_ok()
    {
        return Ok(());
    }
    handle.kill().map_err(|e| Fault::os("kill", &e))?;
    tokio::time::timeout(KILL, handle.ended())
        .await
        .map_err(|_| Fault::passing("kill_failed", format!("process {} does not end", handle.process.pid)))
}

/// Waits for the end of a process and says what it was.
async fn watch_end(
    handle: Arc<Handle>,
    child: Option<Child>,
    drained: impl Future<Output = ()>,
    view: watch::Sender<View>,
    folder: PathBuf,
) {
    handle.ended().await;
    let status = match child {
        Some(mut child) => child.wait().await.ok().map(|s| s.to_string()),
        None => None,
    };
    let _ = tokio::time::timeout(LAST_WORDS, drained).await;
    let clean = view.borrow().guest.shutdown_progress.as_deref() == Some(POWERING_OFF);
    let mut reason = match (clean, status) {
        (true, _) => "the guest powered itself off".to_owned(),
        (false, Some(status)) => format!("QEMU ended ({status})"),
        (false, None) => "QEMU ended".to_owned(),
    };
    let said = process::last_lines(&folder.join(STDERR_LOG), 0);
    if !clean && !said.is_empty() {
        reason = format!("{reason}; it last said: {said}");
    }
    let ended = Ended { at: clock::now(), reason, clean };
    view.send_modify(|v| v.ended = Some(ended));
}

/// Why QEMU ended before it answered.
fn classify(status: &str, said: &str) -> Fault {
    let code = if said.contains("Could not set up host forwarding rule") || said.contains("Address already in use") {
        "port_in_use"
    } else if said.contains("No space left") {
        DISK_FULL
    } else {
        "qemu_failed"
    };
    Fault::passing(code, format!("QEMU ended ({status}): {said}"))
}

/// Keeps the logs of running VMs small.
async fn rotation(records: Records, machines: Machines) {
    let mut tick = tokio::time::interval(ROTATION);
    loop {
        tick.tick().await;
        let folders: Vec<PathBuf> = lock(&machines).keys().map(|uuid| records.folder(*uuid)).collect();
        if !folders.is_empty() {
            let _ = tokio::task::spawn_blocking(move || folders.iter().for_each(|f| logs::rotate(f))).await;
        }
    }
}

/// Tells of machines that QEMU stopped in the middle of a write because the host's disk was full, and lets them go on once
/// there is room.
async fn resumption(records: Records, machines: Machines) {
    let mut tick = tokio::time::interval(RESUMPTION);
    loop {
        tick.tick().await;
        let running: Vec<_> = lock(&machines).iter().map(|(uuid, machine)| (*uuid, machine.view.clone())).collect();
        for (uuid, view) in running {
            let folder = records.folder(uuid);
            // One that does not answer is as it was.
            let Ok(status) = qmp::execute(&folder, "query-status").await else { continue };
            let waits = status["status"] == "io-error";
            let has_room = !host::disk_free(records.dir()).is_ok_and(|free| free < ROOM);
            let goes_on = waits && has_room && qmp::execute(&folder, "cont").await.is_ok();
            // One that goes on is looked at again before that is told: it may have stopped at its next write.
            let paused = waits.then_some(DISK_FULL);
            let changed = view.send_if_modified(|view| std::mem::replace(&mut view.paused, paused) != paused);
            if changed || goes_on {
                warn!(vm = %uuid, waits, goes_on, "it stands still while the disk is full");
            }
        }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn about(&self) -> About {
        self.facts.about()
    }

    fn records(&self) -> &Records {
        &self.records
    }

    async fn capacity(&self) -> Capacity {
        let vms = self.records.dir().to_owned();
        let disk = tokio::task::spawn_blocking(move || host::disk_free(&vms).unwrap_or(0) + host::disk_used(&vms));
        let disk_gb = host::gb(disk.await.unwrap_or(0));
        Capacity {
            vcpu: host::threads(),
            memory_mb: host::memory_mb().saturating_sub(self.reserve_memory_mb),
            disk_gb: disk_gb.saturating_sub(self.min_free_disk_gb),
            slots: self.slots,
        }
    }

    async fn health(&self) -> Health {
        let disk_free_gb = host::gb(host::disk_free(&self.data_dir).unwrap_or(0));
        let full = disk_free_gb < self.min_free_disk_gb;
        let full = full.then(|| format!("{disk_free_gb} GB of disk are free; {} are needed", self.min_free_disk_gb));
        let reason = self.facts.trouble().or(full);
        Health { disk_free_gb, ready: reason.is_none(), reason }
    }

    async fn images(&self) -> Vec<ImageInfo> {
        self.facts.images()
    }

    async fn prepare(&self, spec: &VmSpec) -> Result<(), Fault> {
        let _turn = self.preparing.acquire().await.map_err(|e| Fault::passing("io", e.to_string()))?;
        let image = self.image(&spec.image)?;
        disks::prepare(spec, &image, &self.records.folder(spec.uuid), self.min_free_disk_gb).await
    }

    async fn start(&self, desired: &Arc<DesiredVm>) -> Result<Started, Fault> {
        let spec = spec_of(desired)?;
        lock(&self.machines).remove(&spec.uuid);
        self.end_strays(spec.uuid).await?;
        let image = self.image(&spec.image)?;
        let accelerator = self.facts.accelerator().await?;
        let args = argv::vm(spec, &facts::kernel(&image), accelerator)?;
        let folder = self.records.folder(spec.uuid);
        // The image may have been built anew since, under the same name; its kernel is the one that boots.
        disks::boot(&image, &folder).await?;
        let said = std::fs::metadata(folder.join(STDERR_LOG)).map_or(0, |m| m.len());
        let mut child = process::spawn(&self.binary, &args, &folder).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => facts::missing(&self.binary),
            _ => Fault::os("start QEMU", &e),
        })?;
        holdfast_failpoint::hit("qemu.spawned");
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(-1);
        let handle = Handle::open(pid);
        if let Err(fault) = self.answers(&mut child, &folder, said).await {
            let _ = child.kill().await;
            return Err(fault);
        }
        let handle = handle.map_err(|e| Fault::os("watch QEMU", &e))?;
        let process = Some(handle.process);
        let view = self.take(desired, handle, Some(child), GuestView::default());
        Ok(Started { process, at: clock::now(), view })
    }

    async fn adopt(&self, desired: &Arc<DesiredVm>, runtime: &Runtime) -> Adopted {
        let uuid = desired.uuid;
        let folder = self.records.folder(uuid);
        let handle = match runtime.process.and_then(Handle::find) {
            Some(handle) => Some(handle),
            None => tokio::task::spawn_blocking(move || process::scan(uuid, &folder))
                .await
                .unwrap_or_default()
                .into_iter()
                .next(),
        };
        match handle {
            Some(handle) => {
                let (process, at) = (Some(handle.process), runtime.started_at.unwrap_or_else(clock::now));
                let view = self.take(desired, handle, None, runtime.guest.clone());
                Adopted::Running(Started { process, at, view })
            }
            None if runtime.life == Life::Starting => Adopted::Off,
            None => {
                let clean = runtime.guest.shutdown_progress.as_deref() == Some(POWERING_OFF);
                let reason = "QEMU ended while the node was not running".to_owned();
                Adopted::Died(Ended { at: clock::now(), reason, clean })
            }
        }
    }

    async fn configure(&self, desired: &Arc<DesiredVm>) {
        if let Some(machine) = lock(&self.machines).get(&desired.uuid) {
            machine.wanted.send_replace(desired.clone());
        }
    }

    async fn shutdown(&self, uuid: Uuid, grace_s: u32) {
        if let Ok(line) = self.line(uuid) {
            line.shutdown(grace_s).await;
        }
    }

    async fn shutdown_withdraw(&self, uuid: Uuid) {
        if let Ok(line) = self.line(uuid) {
            line.shutdown_withdraw().await;
        }
    }

    async fn kill(&self, uuid: Uuid) -> Result<(), Fault> {
        let handle = lock(&self.machines).get(&uuid).map(|m| m.handle.clone());
        if let Some(handle) = handle {
            end(&handle, Some(&self.records.folder(uuid))).await?;
            holdfast_failpoint::hit("qemu.ended");
            lock(&self.machines).remove(&uuid);
        }
        self.end_strays(uuid).await
    }

    async fn remove(&self, uuid: Uuid) -> Result<(), Fault> {
        if !self.records.folder(uuid).exists() {
            return Ok(());
        }
        self.kill(uuid).await?;
        let records = self.records.clone();
        let removed = tokio::task::spawn_blocking(move || records.remove(uuid)).await;
        removed.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(|e| Fault::os("remove", &e))
    }

    async fn logs(
        &self,
        uuid: Uuid,
        source: LogSource,
        options: LogOptions,
        sink: &mut dyn LogSink,
    ) -> Result<(), StreamError> {
        let name = match source {
            LogSource::Serial => SERIAL_LOG,
            LogSource::Stdout => STDOUT_LOG,
            LogSource::Stderr => STDERR_LOG,
            LogSource::Container(container) => {
                return self.line(uuid)?.logs(container, options, sink).await;
            }
        };
        logs::read(&self.records.folder(uuid), name, &options, sink).await
    }

    async fn containers(&self, uuid: Uuid) -> Result<Vec<Container>, StreamError> {
        self.line(uuid)?.containers().await
    }

    async fn stats(&self, uuid: Uuid) -> Result<Box<SystemStats>, StreamError> {
        self.line(uuid)?.stats().await
    }
}
