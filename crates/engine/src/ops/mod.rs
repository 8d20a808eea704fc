//! The registry: one file per operation. Adding one is a file here and a route.

mod vm_create;
mod vm_delete;
mod vm_power_off;
mod vm_power_on;
mod vm_replicate;
mod vm_restart;
mod vm_shutdown;
mod vm_update;

use crate::plan::{Action, Deadline, Plan, Step, Until};
use holdfast_model::vm::VmStatus;

pub use vm_create::PLAN as VM_CREATE;
pub use vm_delete::PLAN as VM_DELETE;
pub use vm_power_off::PLAN as VM_POWER_OFF;
pub use vm_power_on::PLAN as VM_POWER_ON;
pub use vm_replicate::PLAN as VM_REPLICATE;
pub use vm_restart::PLAN as VM_RESTART;
pub use vm_shutdown::PLAN as VM_SHUTDOWN;
pub use vm_update::{
    COMPOSE_UPDATE, ENV_UPDATE, OS_IMAGE_UPDATE, PORTS_UPDATE, RENAME, RESIZE, UPDATE, VISIBILITY_UPDATE, plan_of,
};

/// Every plan there is, old versions that running operations may still need among them.
pub const ALL: [&Plan; 15] = [
    &VM_CREATE,
    &VM_REPLICATE,
    &VM_POWER_ON,
    &VM_POWER_OFF,
    &VM_SHUTDOWN,
    &VM_RESTART,
    &VM_DELETE,
    &COMPOSE_UPDATE,
    &ENV_UPDATE,
    &RESIZE,
    &PORTS_UPDATE,
    &OS_IMAGE_UPDATE,
    &UPDATE,
    &VISIBILITY_UPDATE,
    &RENAME,
];

/// The plan an operation was accepted with. `None` when this build does not know it (any more).
pub fn find(name: &str, version: u32) -> Option<&'static Plan> {
    find_in(&ALL, name, version)
}

fn find_in(plans: &[&'static Plan], name: &str, version: u32) -> Option<&'static Plan> {
    plans.iter().copied().find(|plan| plan.name == name && plan.version == version)
}

/// A VM that does not run can be started.
const MAY_START: &[VmStatus] = &[VmStatus::Stopped, VmStatus::Exited, VmStatus::Error];
/// What runs, should run or has ended by itself can be stopped.
const MAY_STOP: &[VmStatus] = &[VmStatus::Running, VmStatus::Starting, VmStatus::Exited, VmStatus::Error];

// Steps that every operation ending in a running app shares.

const START: Step = Step {
    name: "start",
    action: Action::Await(Until::Started),
    deadline: Deadline::Start,
    undo: None,
    then: Some(VmStatus::Starting),
};

const BOOT: Step =
    Step { name: "boot", action: Action::Await(Until::AgentUp), deadline: Deadline::Boot, undo: None, then: None };

const LAUNCH: Step = Step {
    name: "launch",
    action: Action::Await(Until::AppUp),
    deadline: Deadline::Launch,
    undo: None,
    then: Some(VmStatus::Running),
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_versions_are_unique() {
        let names: BTreeSet<_> = ALL.iter().map(|plan| (plan.name, plan.version)).collect();
        assert_eq!(names.len(), ALL.len());
        for plan in ALL {
            assert!(find(plan.name, plan.version).is_some_and(|found| std::ptr::eq(found, plan)), "{}", plan.name);
        }
    }

    #[test]
    fn an_operation_finds_the_version_it_was_accepted_with() {
        static OLD: Plan = Plan { version: 1, steps: &[BOOT], ..VM_POWER_ON };
        static NEW: Plan = Plan { version: 2, ..VM_POWER_ON };
        let plans = [&NEW, &OLD];
        let steps = |version| find_in(&plans, OLD.name, version).map(|plan| plan.steps.len());
        assert_eq!((steps(1), steps(2), steps(3)), (Some(1), Some(VM_POWER_ON.steps.len()), None));
        assert!(find_in(&plans, "another", 1).is_none());
    }
}
