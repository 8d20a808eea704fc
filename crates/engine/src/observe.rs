//! The status of a VM that no operation holds: what was seen of it, in the words of the surfaces.

use holdfast_model::guest::BootProgress;
use holdfast_model::node::{Phase, VmReport};
use holdfast_model::vm::{RunState, VmStatus};

use crate::record::Desired;

/// `current` stays when what was seen says nothing new: a VM whose operation left it in `error` leaves that only when
/// its app is up after all.
pub fn status_of(current: VmStatus, desired: &Desired, report: &VmReport) -> VmStatus {
    let seen = Seen {
        generation: report.generation,
        phase: report.phase,
        failed: report.boot_error.is_some(),
        progress: report.boot_progress.as_deref(),
        app_revision: report.app_revision,
    };
    status_seen(current, desired, &seen)
}

/// What of a report says how the VM is.
pub(crate) struct Seen<'a> {
    pub generation: u64,
    pub phase: Phase,
    pub failed: bool,
    pub progress: Option<&'a str>,
    pub app_revision: u64,
}

/// The same of these parts of a report.
pub(crate) fn status_seen(current: VmStatus, desired: &Desired, seen: &Seen<'_>) -> VmStatus {
    if seen.generation < desired.generation {
        return current;
    }
    // The app that is wanted; before the guest's first configuration there is none.
    let this_app = seen.app_revision >= desired.generation;
    match (desired.run_state, seen.phase) {
        (RunState::Running, Phase::Running) if seen.app_revision > 0 && !this_app => current,
        (RunState::Running, Phase::Running) if seen.failed => VmStatus::Error,
        (RunState::Running, Phase::Running) if seen.progress == Some(BootProgress::Done.as_str()) => VmStatus::Running,
        (RunState::Running, Phase::Starting | Phase::Running | Phase::Exited) if current == VmStatus::Error => {
            VmStatus::Error
        }
        (RunState::Running, Phase::Starting | Phase::Running) => VmStatus::Starting,
        (RunState::Running, Phase::Exited) => VmStatus::Exited,
        (RunState::Stopped, Phase::Stopped) => VmStatus::Stopped,
        _ => current,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::node::Outcome;

    use super::*;

    fn seen(phase: Phase, progress: &str) -> VmReport {
        VmReport {
            uuid: Default::default(),
            generation: 3,
            outcome: Outcome::Applied,
            phase,
            boot_epoch: 1,
            restarts: 0,
            agent: true,
            boot_progress: Some(progress.to_owned()),
            boot_error: None,
            app_revision: if progress == "booting" { 0 } else { 3 },
            shutdown_progress: None,
            started_at: None,
            exited_at: None,
            exit_reason: None,
            will_restart: false,
            paused: None,
        }
    }

    #[test]
    fn a_death_is_seen_and_a_return_too() {
        let desired = Desired { generation: 3, run_state: RunState::Running, boot_epoch: 1 };
        let status = |current, report| status_of(current, &desired, &report);
        assert_eq!(status(VmStatus::Running, seen(Phase::Exited, "done")), VmStatus::Exited);
        assert_eq!(status(VmStatus::Exited, seen(Phase::Running, "booting")), VmStatus::Starting);
        assert_eq!(status(VmStatus::Starting, seen(Phase::Running, "done")), VmStatus::Running);
        assert_eq!(status(VmStatus::Error, seen(Phase::Running, "pre-launch")), VmStatus::Error);
        assert_eq!(status(VmStatus::Error, seen(Phase::Running, "done")), VmStatus::Running);
        // What is said of the app before says nothing of the one that is wanted.
        let older = VmReport { app_revision: 2, ..seen(Phase::Running, "done") };
        assert_eq!(status(VmStatus::Error, older), VmStatus::Error);
        // Said again, the death that an operation failed of changes nothing.
        assert_eq!(status(VmStatus::Error, seen(Phase::Exited, "booting")), VmStatus::Error);
        let newer = Desired { generation: 4, run_state: RunState::Stopped, boot_epoch: 1 };
        assert_eq!(status_of(VmStatus::Stopping, &newer, &seen(Phase::Stopped, "done")), VmStatus::Stopping);
    }
}
