//! What the node still owes the server: the newest report of each VM that changed.
//!
//! The one rule: a report waits at most until the next message, and only the newest one of a VM is ever sent. A VM
//! that changes many times a second (a guest may be hostile) is slowed down to a few reports a second after a burst.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use holdfast_model::node::{Phase, VmReport};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

/// Reports of one VM that may follow each other at once.
const BURST: f64 = 8.0;
/// Reports of one VM a second, in the long run.
const RATE: f64 = 4.0;

struct Entry {
    report: Arc<VmReport>,
    tokens: f64,
    refilled: Instant,
}

#[derive(Default)]
struct State {
    entries: HashMap<Uuid, Entry>,
    /// VMs whose newest report has not been acknowledged.
    dirty: BTreeSet<Uuid>,
}

/// Shared by all VM tasks and the one that reports.
#[derive(Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes note of how a VM is; wakes the reporter when that is news.
    pub fn publish(&self, report: VmReport) {
        let uuid = report.uuid;
        let mut state = self.lock();
        if state.entries.get(&uuid).is_some_and(|e| *e.report == report) {
            return;
        }
        let report = Arc::new(report);
        match state.entries.get_mut(&uuid) {
            Some(entry) => entry.report = report,
            None => {
                state.entries.insert(uuid, Entry { report, tokens: BURST, refilled: Instant::now() });
            }
        }
        state.dirty.insert(uuid);
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for something to say.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Everything counts as unsaid: a new session begins.
    pub fn all_dirty(&self) {
        let mut state = self.lock();
        state.dirty = state.entries.keys().copied().collect();
    }

    /// What to send now, and how long to wait before the rest may be sent. With `all`, nothing is held back.
    pub fn take(&self, all: bool) -> (Vec<Arc<VmReport>>, Option<Duration>) {
        let now = Instant::now();
        let mut state = self.lock();
        let dirty = std::mem::take(&mut state.dirty);
        let (mut reports, mut held) = (Vec::with_capacity(dirty.len()), None);
        for uuid in dirty {
            let Some(entry) = state.entries.get_mut(&uuid) else { continue };
            let earned = now.duration_since(entry.refilled).as_secs_f64() * RATE;
            entry.tokens = (entry.tokens + earned).min(BURST);
            entry.refilled = now;
            if all || entry.tokens >= 1.0 {
                entry.tokens = (entry.tokens - 1.0).max(0.0);
                reports.push(entry.report.clone());
            } else {
                state.dirty.insert(uuid);
                held = Some(Duration::from_secs_f64(1.0 / RATE));
            }
        }
        (reports, held)
    }

    /// The server has these; a VM that is absent need not be spoken of again.
    pub fn acknowledged(&self, reports: &[Arc<VmReport>]) {
        let mut state = self.lock();
        for report in reports.iter().filter(|r| r.phase == Phase::Absent) {
            if state.entries.get(&report.uuid).is_some_and(|e| Arc::ptr_eq(&e.report, report)) {
                state.entries.remove(&report.uuid);
            }
        }
    }

    /// These did not arrive.
    pub fn lost(&self, reports: &[Arc<VmReport>]) {
        let mut state = self.lock();
        state.dirty.extend(reports.iter().map(|r| r.uuid));
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::node::Outcome;

    use super::*;

    fn report(uuid: Uuid, phase: Phase, restarts: u32) -> VmReport {
        VmReport {
            uuid,
            generation: 1,
            outcome: Outcome::Progress,
            phase,
            boot_epoch: 1,
            restarts,
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

    #[test]
    fn only_the_newest_is_sent_and_a_loss_is_made_good() {
        let (reports, vm) = (Reports::default(), Uuid::new_v4());
        reports.publish(report(vm, Phase::Preparing, 0));
        reports.publish(report(vm, Phase::Running, 0));
        reports.publish(report(vm, Phase::Running, 0));
        let (sent, held) = reports.take(false);
        assert_eq!((sent.len(), held), (1, None));
        assert_eq!(sent[0].phase, Phase::Running);
        assert!(reports.take(false).0.is_empty());
        reports.lost(&sent);
        assert_eq!(reports.take(false).0.len(), 1);
        reports.all_dirty();
        assert_eq!(reports.take(true).0.len(), 1);
    }

    #[test]
    fn a_vm_that_changes_all_the_time_is_slowed_down() {
        let (reports, vm) = (Reports::default(), Uuid::new_v4());
        let mut sent = 0;
        for i in 0..1000 {
            reports.publish(report(vm, Phase::Running, i));
            sent += reports.take(false).0.len();
        }
        assert!((8..100).contains(&sent), "{sent}");
        reports.publish(report(vm, Phase::Running, 2000));
        assert!(reports.take(false).1.is_some());
    }

    #[test]
    fn an_absent_vm_is_forgotten_once_the_server_knows() {
        let (reports, vm) = (Reports::default(), Uuid::new_v4());
        reports.publish(report(vm, Phase::Absent, 0));
        let (sent, _) = reports.take(false);
        reports.acknowledged(&sent);
        reports.all_dirty();
        assert!(reports.take(true).0.is_empty());
    }
}
