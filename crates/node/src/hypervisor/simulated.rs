//! A hypervisor without VMs: each step only takes its time. For load tests and simulations, never a default.
//!
//! The one rule: how far a machine is follows from when it was started and from nothing else, so the few bytes of its
//! record bring it back after a kill.
//!
//! ```text
//!   prepare (1 step) -> start (1 step) -> booting (1 step) -> agent answers, starting containers (1 step) -> done
//!                                                   another app while it runs: starting containers (1 step) -> done
//! ```
//! An app with a service named [`FAILING_SERVICE`] never comes up: it ends in a boot error. A guest with one named
//! [`DEAF_SERVICE`] does not power off when it is asked to.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_model::compose::{AppCompose, sha256_hex};
use holdfast_model::guest::{BootError, BootProgress, Container, DiskStats, LogOptions, SystemStats};
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{Accelerator, Capacity, DesiredVm, Health, LogSource, StreamError};
use holdfast_model::vm::VmSpec;
use holdfast_model::{Timestamp, VERSION, time};
use serde::Deserialize;
use tokio::sync::watch;
use uuid::Uuid;

use super::{About, Adopted, Ended, Fault, Hypervisor, LogSink, Started, View, stream_error};
use crate::clock;
use crate::record::{GuestView, Layout, Life, Records, Runtime};

/// VMs that fit when nothing else is configured.
pub const SLOTS: u32 = 10_000;

/// Name of the service whose app fails, for tests.
pub const FAILING_SERVICE: &str = "holdfast-sim-fail";

/// Name of the service whose guest does not hear that it is to power off, for tests.
pub const DEAF_SERVICE: &str = "holdfast-sim-deaf";

/// The image that every simulated node offers when the image folder has none.
const IMAGE: &str = "simulated";

struct Guest {
    view: watch::Sender<View>,
    started: Timestamp,
    /// What it was given last; without a spec when it is to be stopped.
    desired: Arc<DesiredVm>,
}

impl Guest {
    fn show(&self, guest: GuestView) {
        self.view.send_modify(|view| {
            let shutdown_progress = view.guest.shutdown_progress.take();
            view.guest = GuestView { shutdown_progress, ..guest };
        });
    }
}

type Guests = Arc<Mutex<HashMap<Uuid, Guest>>>;

/// See the module.
pub struct Simulated {
    records: Records,
    step: Duration,
    slots: u32,
    images: Vec<ImageInfo>,
    guests: Guests,
}

impl Simulated {
    /// VMs are kept in `dir`. `images` are offered as they are; without any there is one named `simulated`.
    pub fn open(dir: &Path, step: Duration, slots: Option<u32>, mut images: Vec<ImageInfo>) -> io::Result<Self> {
        if images.is_empty() {
            images.push(ImageInfo {
                name: IMAGE.to_owned(),
                version: VERSION.to_owned(),
                is_dev: true,
                os_image_hash: Some(sha256_hex(IMAGE)),
            });
        }
        let records = Records::open(dir.to_owned(), Layout::Files)?;
        let guests = Guests::default();
        holdfast_failpoint::machines({
            let guests = guests.clone();
            move || {
                let running: Vec<Uuid> = lock(&guests).keys().copied().collect();
                running.into_iter().for_each(|uuid| end(&guests, uuid, "it was killed", false));
            }
        });
        Ok(Self { records, step, slots: slots.unwrap_or(SLOTS), images, guests })
    }

    /// Ends a machine as a crash of its process would. For tests and simulations.
    pub fn crash(&self, uuid: Uuid) {
        end(&self.guests, uuid, "it crashed", false);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Guest>> {
        lock(&self.guests)
    }

    /// Lets the guest boot on, from where a machine started at `started` is now.
    fn run(&self, desired: &Arc<DesiredVm>, started: Timestamp) -> watch::Receiver<View> {
        let elapsed = clock::now().since(started);
        let guest = progress(elapsed, self.step, desired);
        let (view, receiver) = watch::channel(View { guest, ..View::default() });
        self.lock().insert(desired.uuid, Guest { view: view.clone(), started, desired: desired.clone() });
        let left = [1, 2].map(|n| (self.step * n, (self.step * n).saturating_sub(elapsed)));
        self.go_on(desired.uuid, view, left.into_iter().filter(|(_, wait)| !wait.is_zero()).collect());
        receiver
    }

    /// Shows how far the guest is, each time after a wait from now, with the app that it is to run by then.
    fn go_on(&self, uuid: Uuid, view: watch::Sender<View>, stages: Vec<(Duration, Duration)>) {
        let (guests, step, began) = (self.guests.clone(), self.step, tokio::time::Instant::now());
        if stages.is_empty() {
            return;
        }
        tokio::spawn(async move {
            for (elapsed, wait) in stages {
                tokio::time::sleep_until(began + wait).await;
                let guests = lock(&guests);
                let Some(guest) = guests.get(&uuid).filter(|g| g.view.same_channel(&view)) else { return };
                guest.show(progress(elapsed, step, &guest.desired));
            }
        });
    }

    fn spec(&self, uuid: Uuid) -> Result<(VmSpec, Timestamp), StreamError> {
        let guests = self.lock();
        let guest = guests.get(&uuid).ok_or_else(|| stream_error("not_running", "the VM does not run"))?;
        let spec = guest.desired.spec.clone().ok_or_else(|| stream_error("not_running", "the VM is being removed"))?;
        Ok((spec, guest.started))
    }
}

fn lock(guests: &Guests) -> MutexGuard<'_, HashMap<Uuid, Guest>> {
    guests.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn end(guests: &Guests, uuid: Uuid, reason: &str, clean: bool) {
    if let Some(guest) = lock(guests).remove(&uuid) {
        let ended = Ended { at: clock::now(), reason: reason.to_owned(), clean };
        guest.view.send_modify(|v| v.ended = Some(ended));
    }
}

/// What the guest says `elapsed` after its start.
fn progress(elapsed: Duration, step: Duration, desired: &DesiredVm) -> GuestView {
    if elapsed < step {
        return GuestView::default();
    }
    let fails = || desired.spec.as_ref().is_some_and(|spec| services(spec).contains_key(FAILING_SERVICE));
    let (word, boot_error) = match elapsed < step * 2 {
        true => (BootProgress::StartingContainers, None),
        false if fails() => {
            let word = BootProgress::StartingContainers;
            let message = format!("{FAILING_SERVICE}: it was told to fail");
            (word, Some(BootError { step: word.as_str().to_owned(), message }))
        }
        false => (BootProgress::Done, None),
    };
    GuestView {
        agent: true,
        boot_progress: Some(word.as_str().to_owned()),
        boot_error,
        app_revision: desired.generation,
        shutdown_progress: None,
    }
}

/// The guest need not do anything to run the one instead of the other.
fn is_same_app(one: &DesiredVm, other: &DesiredVm) -> bool {
    let app = |spec: &VmSpec| (spec.app_compose.clone(), spec.encrypted_env.clone(), spec.user_config.clone());
    one.spec.as_ref().map(app) == other.spec.as_ref().map(app)
}

#[async_trait]
impl Hypervisor for Simulated {
    fn about(&self) -> About {
        About { name: "simulated", version: VERSION.to_owned(), accelerator: Accelerator::Simulated, tee: false }
    }

    fn records(&self) -> &Records {
        &self.records
    }

    async fn capacity(&self) -> Capacity {
        let slots = u64::from(self.slots);
        Capacity {
            vcpu: self.slots.saturating_mul(64),
            memory_mb: slots * 64 * 1024,
            disk_gb: slots * 1000,
            slots: self.slots,
        }
    }

    async fn health(&self) -> Health {
        Health { disk_free_gb: u64::from(self.slots) * 1000, ready: true, reason: None }
    }

    async fn images(&self) -> Vec<ImageInfo> {
        self.images.clone()
    }

    async fn prepare(&self, spec: &VmSpec) -> Result<(), Fault> {
        if !self.images.iter().any(|i| i.name == spec.image) {
            return Err(Fault::passing("image_missing", format!("there is no image {:?}", spec.image)));
        }
        tokio::time::sleep(self.step).await;
        Ok(())
    }

    async fn start(&self, desired: &Arc<DesiredVm>) -> Result<Started, Fault> {
        end(&self.guests, desired.uuid, "it is started anew", false);
        tokio::time::sleep(self.step).await;
        let at = clock::now();
        Ok(Started { process: None, at, view: self.run(desired, at) })
    }

    async fn adopt(&self, desired: &Arc<DesiredVm>, runtime: &Runtime) -> Adopted {
        match (runtime.life, runtime.started_at) {
            (Life::On | Life::Stopping, Some(at)) => {
                let view = self.run(desired, at);
                if runtime.life == Life::Stopping {
                    // A real guest would be powering off all the while.
                    self.shutdown(desired.uuid, 0).await;
                }
                Adopted::Running(Started { process: None, at, view })
            }
            _ => Adopted::Off,
        }
    }

    async fn configure(&self, desired: &Arc<DesiredVm>) {
        let mut guests = self.lock();
        let Some(guest) = guests.get_mut(&desired.uuid) else { return };
        let before = std::mem::replace(&mut guest.desired, desired.clone());
        let now = guest.view.borrow().guest.clone();
        if now.app_revision == 0 {
            // It is still booting, and will ask.
        } else if is_same_app(&before, desired) && now.boot_error.is_none() {
            guest.show(GuestView { app_revision: desired.generation, ..now });
        } else {
            guest.show(progress(self.step, self.step, desired));
            let view = guest.view.clone();
            drop(guests);
            self.go_on(desired.uuid, view, vec![(self.step * 2, self.step)]);
        }
    }

    async fn shutdown(&self, uuid: Uuid, _grace_s: u32) {
        if let Some(guest) = self.lock().get(&uuid) {
            if guest.desired.spec.as_ref().is_some_and(|spec| services(spec).contains_key(DEAF_SERVICE)) {
                return;
            }
            guest.view.send_modify(|v| v.guest.shutdown_progress = Some("powering off".to_owned()));
        }
        let (guests, step) = (self.guests.clone(), self.step);
        tokio::spawn(async move {
            tokio::time::sleep(step).await;
            end(&guests, uuid, "the guest powered itself off", true);
        });
    }

    async fn shutdown_withdraw(&self, _uuid: Uuid) {}

    async fn kill(&self, uuid: Uuid) -> Result<(), Fault> {
        tokio::time::sleep(self.step).await;
        end(&self.guests, uuid, "it was killed", false);
        Ok(())
    }

    async fn remove(&self, uuid: Uuid) -> Result<(), Fault> {
        tokio::time::sleep(self.step).await;
        end(&self.guests, uuid, "it was removed", false);
        self.records.remove(uuid).map_err(|e| Fault::os("remove", &e))
    }

    async fn logs(
        &self,
        uuid: Uuid,
        source: LogSource,
        options: LogOptions,
        sink: &mut dyn LogSink,
    ) -> Result<(), StreamError> {
        let (spec, started) = self.spec(uuid)?;
        let lines = match source {
            LogSource::Serial => vec![(started, format!("simulated guest of {} booted", spec.name))],
            LogSource::Stdout | LogSource::Stderr => vec![],
            LogSource::Container(name) => {
                let container = containers(&spec, started)
                    .into_iter()
                    .find(|c| c.id == name || c.names.iter().any(|n| n.trim_start_matches('/') == name))
                    .ok_or_else(|| stream_error("no_such_container", format!("no container {name:?}")))?;
                (0..10).map(|i| (started, format!("{} line {i}", container.image))).collect()
            }
        };
        let moment = |text: &Option<String>| text.as_deref().and_then(|text| time::moment(text, clock::now()));
        let (since, until) = (moment(&options.since), moment(&options.until));
        let wanted = |at: Timestamp| since.is_none_or(|t| at >= t) && until.is_none_or(|t| at <= t);
        let lines: Vec<_> = lines.into_iter().filter(|(at, _)| wanted(*at)).collect();
        let skip = options.tail.map_or(0, |n| lines.len().saturating_sub(usize::try_from(n).unwrap_or(usize::MAX)));
        for (at, line) in lines.into_iter().skip(skip) {
            let text = if options.timestamps { format!("{at} {line}\n") } else { format!("{line}\n") };
            if !sink.write(1, Bytes::from(text)).await {
                return Ok(());
            }
        }
        if options.follow {
            let view = self.lock().get(&uuid).map(|g| g.view.subscribe());
            if let Some(mut view) = view {
                let _ = view.wait_for(|v| v.ended.is_some()).await;
            }
        }
        Ok(())
    }

    async fn containers(&self, uuid: Uuid) -> Result<Vec<Container>, StreamError> {
        let (spec, started) = self.spec(uuid)?;
        Ok(containers(&spec, started))
    }

    async fn stats(&self, uuid: Uuid) -> Result<Box<SystemStats>, StreamError> {
        let (spec, started) = self.spec(uuid)?;
        Ok(Box::new(stats(&spec, started)))
    }
}

/// A machine of the size that was asked for, which says of itself that it is none. Every service takes a little of it.
fn stats(spec: &VmSpec, started: Timestamp) -> SystemStats {
    const MIB: u64 = 1024 * 1024;
    let services = services(spec).len() as u64;
    let total_memory = spec.memory_mb * MIB;
    let used_memory = (64 * MIB * (services + 1)).min(total_memory);
    let total_size = spec.disk_gb * 1024 * MIB;
    SystemStats {
        os_name: "simulated".to_owned(),
        os_version: VERSION.to_owned(),
        kernel_version: "none".to_owned(),
        cpu_model: "simulated: there is no machine".to_owned(),
        num_cpus: spec.vcpu,
        total_memory,
        available_memory: total_memory - used_memory,
        used_memory,
        free_memory: total_memory - used_memory,
        uptime: clock::now().since(started).as_secs(),
        disks: vec![DiskStats {
            name: "simulated".to_owned(),
            mount_point: "/data".to_owned(),
            total_size,
            free_size: total_size.saturating_sub(256 * MIB * (services + 1)),
        }],
        ..SystemStats::default()
    }
}

#[derive(Default, Deserialize)]
struct ComposeFile {
    #[serde(default)]
    services: BTreeMap<String, serde_json::Value>,
}

/// The services of the compose file, as they are written.
fn services(spec: &VmSpec) -> BTreeMap<String, serde_json::Value> {
    let yaml = AppCompose::parse(&spec.app_compose).ok().and_then(|c| c.docker_compose_file).unwrap_or_default();
    serde_saphyr::from_str::<ComposeFile>(&yaml).unwrap_or_default().services
}

/// One running container for each service of the compose file, named as compose names them. A service that an update
/// leaves as it is keeps its container.
fn containers(spec: &VmSpec, started: Timestamp) -> Vec<Container> {
    let container = |(name, service): (String, serde_json::Value)| {
        let image = service["image"].as_str().unwrap_or_default().to_owned();
        Container {
            id: sha256_hex(format!("{}/{name}/{service}", spec.uuid)),
            names: vec![format!("/app-{name}-1")],
            image_id: format!("sha256:{}", sha256_hex(&image)),
            image,
            command: String::new(),
            created: started.seconds(),
            state: "running".to_owned(),
            status: format!("Up {} seconds", clock::now().since(started).as_secs()),
        }
    };
    services(spec).into_iter().map(container).collect()
}
