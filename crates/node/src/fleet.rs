//! All VMs of the node: hands desired states to the task of each VM, and makes the tasks.
//!
//! The one rule: a VM is never given a lower generation than it has seen. Because of that a page may come late, twice
//! or never. What is on disk but not in a full page is left as it is and named in the log: the server may have lost
//! its memory, and a VM is easier to delete than to bring back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use holdfast_model::node::{DesiredPage, DesiredVm, Outcome, Phase, VmReport};
use holdfast_model::vm::RunState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::vm::{Context, Vm};

/// Dropping it ends all VM tasks, and no VM.
pub(crate) struct Fleet {
    context: Arc<Context>,
    /// One sender per VM; closed once its task has obeyed a tombstone.
    vms: HashMap<Uuid, watch::Sender<Arc<DesiredVm>>>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Takes over everything that is on disk, without asking anybody.
    pub fn adopt(context: Arc<Context>) -> std::io::Result<Self> {
        let found = context.hypervisor.records().load()?;
        for (path, why) in found.orphans {
            warn!(path = %path.display(), why, "orphan: left alone, because nothing says what it should be");
        }
        let mut fleet = Self { context, vms: HashMap::new(), tasks: JoinSet::new() };
        if !found.records.is_empty() {
            info!(vms = found.records.len(), "found VMs on disk");
        }
        for record in found.records {
            let (sender, news) = watch::channel(record.desired.clone());
            fleet.vms.insert(record.desired.uuid, sender);
            fleet.tasks.spawn(Vm::found(fleet.context.clone(), record, news).run());
        }
        Ok(fleet)
    }

    /// Takes a page of desired states. A `full` one names every VM that the server knows on this node.
    pub fn apply(&mut self, page: DesiredPage, full: bool) {
        self.reap();
        if full {
            let named: HashSet<Uuid> = page.vms.iter().map(|d| d.uuid).collect();
            self.vms.retain(|uuid, sender| named.contains(uuid) || !sender.is_closed());
            for uuid in self.vms.keys().filter(|uuid| !named.contains(uuid)) {
                warn!(vm = %uuid, "orphan: the server does not know this VM; it is left as it is");
            }
        }
        for desired in page.vms {
            self.tell(desired);
        }
    }

    fn tell(&mut self, desired: DesiredVm) {
        let uuid = desired.uuid;
        let fits = match &desired.spec {
            Some(spec) => spec.uuid == uuid,
            None => desired.run_state == RunState::Absent,
        };
        if !fits {
            error!(vm = %uuid, "the server sent a desired state without a fitting spec; ignored");
            return;
        }
        let Some(sender) = self.vms.get(&uuid) else { return self.spawn(desired) };
        let seen = sender.borrow().generation;
        match (desired.generation.cmp(&seen), sender.is_closed()) {
            (std::cmp::Ordering::Greater, true) => self.spawn(desired),
            (std::cmp::Ordering::Greater, false) => {
                sender.send_replace(Arc::new(desired));
            }
            (std::cmp::Ordering::Equal, true) => self.context.reports.publish(absent(&desired)),
            _ => {}
        }
    }

    fn spawn(&mut self, desired: DesiredVm) {
        let uuid = desired.uuid;
        let (sender, news) = watch::channel(Arc::new(desired));
        self.vms.insert(uuid, sender);
        self.tasks.spawn(Vm::new(self.context.clone(), news).run());
    }

    /// Forgets tasks that have ended; one that panicked is an error of ours, and is told.
    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                error!(%error, "the task of a VM failed");
            }
        }
    }

    /// Lets go of all VMs; returns when no task is in the middle of something.
    pub async fn release(mut self) {
        self.vms.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The report about a tombstone that was obeyed before.
fn absent(desired: &DesiredVm) -> VmReport {
    VmReport {
        uuid: desired.uuid,
        generation: desired.generation,
        outcome: Outcome::Applied,
        phase: Phase::Absent,
        boot_epoch: desired.boot_epoch,
        restarts: 0,
        agent: false,
        boot_progress: None,
        boot_error: None,
        app_revision: 0,
        shutdown_progress: None,
        started_at: None,
        exited_at: None,
        exit_reason: None,
        will_restart: false,
        paused: None,
    }
}
