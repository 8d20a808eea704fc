//! The node's conversation with its server: register, then listen, report and stream until the server forgets us.
//!
//! The one rule: losing the server costs nothing but news. VMs run on, every call is repeated with backoff for ever, and
//! a new session begins with everything: `since=0` downwards, all reports upwards.
//!
//! ```text
//!   register --ok--> session: desired (long poll) | report (on change, heartbeat) | stream (WebSocket)
//!      ^  |                       |
//!      |  +-- anything else: backoff, again
//!      +---------- 409 from any of them, or the node itself changed ---------+
//! ```

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use fs4::{FileExt, TryLockError};
use holdfast_model::VERSION;
use holdfast_model::backoff::backoff;
use holdfast_model::node::{Register, Report};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::fleet::Fleet;
use crate::hypervisor::qemu::Qemu;
use crate::hypervisor::simulated::Simulated;
use crate::hypervisor::{About, Hypervisor};
use crate::reports::Reports;
use crate::server::{CallError, Server};
use crate::vm::Context;
use crate::{Error, HypervisorKind, NodeConfig, host, image, record, stream};

/// Least time between two reports, in which changes gather.
const SPACING: Duration = Duration::from_millis(10);
/// How old the node's own health in a report may be.
const HEALTH_AGE: Duration = Duration::from_secs(3);
/// How long another holder of the data folder may take to let go.
const LOCK: Duration = Duration::from_secs(1);
/// Least time between two questions that bring nothing.
const POLL_AGAIN: Duration = Duration::from_millis(500);
/// How long tasks may take to finish what they are doing when the node stops.
const RELEASE: Duration = Duration::from_secs(3);

/// Runs the node until `shutdown`; its VMs run on. Needs a rustls crypto provider installed by the binary.
pub async fn run(config: NodeConfig, shutdown: CancellationToken) -> Result<(), Error> {
    record::private_dir(&config.data_dir).map_err(Error::io("cannot make", &config.data_dir))?;
    let _lock = lock(&config).await?;
    let server = Server::new(&config.server_url, &config.token)?;
    let hypervisor: Arc<dyn Hypervisor> = match config.hypervisor {
        HypervisorKind::Simulated => Arc::new(
            Simulated::open(
                &config.data_dir.join("simulated"),
                config.simulated_step,
                config.slots,
                image::list(&config.image_dir).unwrap_or_default(),
            )
            .map_err(Error::io("cannot open", &config.data_dir))?,
        ),
        HypervisorKind::Qemu => Arc::new(Qemu::open(&config, Arc::new(server.clone())).await?),
    };
    let context = Arc::new(Context {
        hypervisor: hypervisor.clone(),
        reports: Arc::new(Reports::default()),
        restart_backoff: holdfast_failpoint::patience(config.restart_backoff),
        boot_id: host::boot_id(),
        began: Instant::now(),
    });
    let mut fleet = Fleet::adopt(context.clone()).map_err(Error::io("cannot read", hypervisor.records().dir()))?;
    let mut node = Node {
        config,
        server,
        hypervisor,
        reports: context.reports.clone(),
        boot_id: context.boot_id.clone(),
        session: Uuid::new_v4(),
        seq: 0,
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = node.serve(&mut fleet) => {}
    }
    info!("the node stops; its VMs run on");
    let _ = tokio::time::timeout(RELEASE, fleet.release()).await;
    Ok(())
}

/// Two nodes on one folder would fight over its VMs. A node that was just killed may have left a child between fork and
/// exec that holds the lock for some milliseconds more, so a held lock is tried again for a moment.
async fn lock(config: &NodeConfig) -> Result<File, Error> {
    let path = config.data_dir.join("node.lock");
    let file = File::create(&path).map_err(Error::io("cannot open", &path))?;
    let deadline = Instant::now() + LOCK;
    loop {
        match FileExt::try_lock(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(TryLockError::WouldBlock) => return Err(Error::Locked(config.data_dir.clone())),
            Err(TryLockError::Error(source)) => return Err(Error::Io { what: "cannot lock", path, source }),
        }
    }
}

struct Node {
    config: NodeConfig,
    server: Server,
    hypervisor: Arc<dyn Hypervisor>,
    reports: Arc<Reports>,
    boot_id: String,
    session: Uuid,
    seq: u64,
}

/// Waits that grow, each shortened at random by up to a half so that many nodes do not knock together.
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(15);

    pub fn new() -> Self {
        Self { failures: 0 }
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }

    pub async fn wait(&mut self) {
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(backoff(Self::FIRST, Self::LONGEST, self.failures, rand::random())).await;
    }
}

impl Node {
    async fn serve(&mut self, fleet: &mut Fleet) {
        loop {
            let (about, heartbeat) = self.register().await;
            let (server, session) = (self.server.clone(), self.session);
            let hypervisor = self.hypervisor.clone();
            let why = tokio::select! {
                why = listen(&server, session, fleet) => why,
                why = stream::serve(&server, session, hypervisor) => why,
                why = self.report(&about, heartbeat) => why,
            };
            match why {
                Some(error) => warn!(%error, "the session ended; registering again"),
                None => info!("the node itself changed; registering again"),
            }
        }
    }

    /// Tries until the server takes us.
    async fn register(&mut self) -> (About, Duration) {
        let mut backoff = Backoff::new();
        loop {
            let about = self.hypervisor.about();
            let register = Register {
                session: self.session,
                name: self.config.name.clone(),
                region: self.config.region.clone(),
                version: VERSION.to_owned(),
                hypervisor: about.name.to_owned(),
                hypervisor_version: about.version.clone(),
                accelerator: about.accelerator,
                tee: about.tee,
                boot_id: self.boot_id.clone(),
                capacity: self.hypervisor.capacity().await,
                publish_address: self.config.publish_address.clone(),
                port_range: self.config.port_range,
                images: self.hypervisor.images().await,
            };
            match self.server.register(&register).await {
                Ok(registered) => {
                    info!(
                        node = %registered.node,
                        server = %self.config.server_url,
                        hypervisor = about.name,
                        accelerator = about.accelerator.as_str(),
                        "registered"
                    );
                    return (about, Duration::from_secs(registered.heartbeat_s.clamp(1, 300).into()));
                }
                Err(error @ CallError::Unauthorized) => error!(%error, server = %self.config.server_url),
                Err(error) => warn!(%error, server = %self.config.server_url, "cannot register; trying again"),
            }
            backoff.wait().await;
        }
    }

    /// Tells the server how the VMs and the node are. Ends with the session, or when the hypervisor is not what was
    /// registered any more.
    async fn report(&mut self, about: &About, heartbeat: Duration) -> Option<CallError> {
        let mut backoff = Backoff::new();
        let mut all = true;
        let mut health = self.hypervisor.health().await;
        let mut images = self.hypervisor.images().await;
        let mut measured = Instant::now();
        self.reports.all_dirty();
        loop {
            if measured.elapsed() > HEALTH_AGE {
                health = self.hypervisor.health().await;
                images = self.hypervisor.images().await;
                measured = Instant::now();
                if self.hypervisor.about() != *about {
                    return None;
                }
            }
            let (batch, held) = self.reports.take(all);
            self.seq += 1;
            let vms = batch.iter().map(|r| (**r).clone()).collect();
            let report =
                Report { session: self.session, seq: self.seq, health: health.clone(), images: images.clone(), vms };
            if !batch.is_empty() {
                holdfast_failpoint::hit("report.before");
            }
            let answer = self.server.report(&report).await;
            if !batch.is_empty() {
                holdfast_failpoint::hit("report.after");
            }
            match answer {
                Ok(_) => {
                    self.reports.acknowledged(&batch);
                    backoff.reset();
                    all = false;
                }
                Err(error @ (CallError::Stale | CallError::Unauthorized)) => return Some(error),
                Err(error) => {
                    warn!(%error, "a report did not arrive; trying again");
                    self.reports.lost(&batch);
                    backoff.wait().await;
                    continue;
                }
            }
            tokio::time::sleep(SPACING).await;
            let pause = held.unwrap_or(heartbeat).min(heartbeat).min(Duration::from_secs(5));
            let _ = tokio::time::timeout(pause, self.reports.changed()).await;
        }
    }
}

/// Hears what the server wants. Ends with the session.
async fn listen(server: &Server, session: Uuid, fleet: &mut Fleet) -> Option<CallError> {
    let mut backoff = Backoff::new();
    let mut since = 0;
    loop {
        let asked = Instant::now();
        match server.desired(session, since).await {
            Ok(page) => {
                let (revision, empty) = (page.revision, page.vms.is_empty());
                if !empty {
                    holdfast_failpoint::hit("desired.heard");
                }
                fleet.apply(page, since == 0);
                if empty && revision == since && asked.elapsed() < POLL_AGAIN {
                    // Nothing, and at once: a server that does not wait must not be asked in a tight loop.
                    tokio::time::sleep(POLL_AGAIN).await;
                }
                since = revision;
                backoff.reset();
            }
            Err(error @ (CallError::Stale | CallError::Unauthorized)) => return Some(error),
            Err(error) => {
                warn!(%error, "cannot hear from the server; trying again");
                backoff.wait().await;
            }
        }
    }
}
