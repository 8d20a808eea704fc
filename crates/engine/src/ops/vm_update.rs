//! Updates: a VM gets another revision. One shape of steps under several names, so that histories say what was changed.
//!
//! ```text
//!   apply -> start -> boot -> launch (pivot) -> done
//!     |        '-- only when the VM has to start anew
//!     |  any of them fails
//!     '<- undo_apply: the revision before it is in force again, in a newer generation
//! ```
//! The one rule: the pivot is the last step. Until the app of the new revision is up, the way back to the last good one is
//! open, and an update whose app does not come up takes it by itself. A VM that does not run gets its revision written
//! and is started by nobody; steps that wait for what is there already, or for nothing, are skipped.

use holdfast_model::operation::{Diff, Kind, Verb};
use holdfast_model::vm::VmStatus;

use super::BOOT;
use crate::plan::{Action, Deadline, Plan, Step, Undo, Until};

pub static COMPOSE_UPDATE: Plan = plan("compose_update", &THROUGH_THE_VM, Some(3));
pub static ENV_UPDATE: Plan = plan("env_update", &THROUGH_THE_VM, Some(3));
pub static RESIZE: Plan = plan("resize", &THROUGH_THE_VM, Some(3));
pub static OS_IMAGE_UPDATE: Plan = plan("os_image_update", &THROUGH_THE_VM, Some(3));
/// Several of the others at once, or what has no name of its own.
pub static UPDATE: Plan = plan("update", &THROUGH_THE_VM, Some(3));
pub static VISIBILITY_UPDATE: Plan = plan("visibility_update", &WRITTEN, None);
pub static RENAME: Plan = plan("rename", &WRITTEN, None);

/// What stands may change; what is on its way somewhere gets there first.
const MAY_UPDATE: &[VmStatus] =
    &[VmStatus::Running, VmStatus::Starting, VmStatus::Stopped, VmStatus::Exited, VmStatus::Error];

static THROUGH_THE_VM: [Step; 4] = [
    Step {
        name: "apply",
        action: Action::Revise,
        deadline: Deadline::None,
        undo: Some(Undo::Revise(Until::AppUp)),
        then: None,
    },
    // The guest's grace is part of this step.
    Step { name: "start", action: Action::Await(Until::Started), deadline: Deadline::Stop, undo: None, then: None },
    BOOT,
    Step { name: "launch", action: Action::Await(Until::AppUp), deadline: Deadline::Launch, undo: None, then: None },
];

/// Nothing that the VM's node has to know.
static WRITTEN: [Step; 1] =
    [Step { name: "apply", action: Action::Revise, deadline: Deadline::None, undo: None, then: None }];

const fn plan(name: &'static str, steps: &'static [Step], pivot: Option<usize>) -> Plan {
    Plan {
        name,
        version: 1,
        kind: Kind::Vm,
        verb: Verb::Update,
        noun: "instance",
        from: MAY_UPDATE,
        target: VmStatus::Running,
        accepted: VmStatus::Updating,
        steps,
        pivot,
        permission: "vms.write",
    }
}

/// The plan whose name says what this diff changes; `None` for an empty one.
pub fn plan_of(diff: &Diff) -> Option<&'static Plan> {
    let has = |fields: &[&str]| fields.iter().any(|field| diff.contains_key(*field));
    let compose = has(&["ports"]) || (has(&["compose_hash"]) && !(has(&["allowed_envs"]) && has(&["env"])));
    let env = has(&["env", "env_values_replaced"]);
    let groups = [
        (compose, &COMPOSE_UPDATE),
        // New values may come with a new compose file, and new names change the list of those that it allows.
        (env && !compose, &ENV_UPDATE),
        (has(&["vcpu", "memory_mb", "disk_gb", "instance_type"]), &RESIZE),
        (has(&["image", "os_image_hash"]), &OS_IMAGE_UPDATE),
        (has(&["user_config_replaced"]), &UPDATE),
        (has(&["listed", "public_logs", "public_sysinfo", "public_tcbinfo"]), &VISIBILITY_UPDATE),
        (has(&["name"]), &RENAME),
    ];
    let mut named = groups.into_iter().filter(|(changed, _)| *changed).map(|(_, plan)| plan);
    let first = named.next()?;
    Some(if named.next().is_some() { &UPDATE } else { first })
}

#[cfg(test)]
mod tests {
    use holdfast_model::operation::FieldDiff;

    use super::*;

    #[test]
    fn the_name_says_what_is_changed() {
        let name = |fields: &[&str]| {
            let entry = |field: &&str| ((*field).to_owned(), FieldDiff { from: None, to: None });
            plan_of(&fields.iter().map(entry).collect()).map(|plan| plan.name)
        };
        let cases: [(&[&str], &str); 13] = [
            (&["compose_hash"], "compose_update"),
            (&["compose_hash", "ports"], "compose_update"),
            (&["compose_hash", "env_values_replaced"], "compose_update"),
            (&["compose_hash", "allowed_envs"], "compose_update"),
            (&["env_values_replaced"], "env_update"),
            (&["env", "env_values_replaced", "compose_hash", "allowed_envs"], "env_update"),
            (&["vcpu", "memory_mb", "instance_type"], "resize"),
            (&["image", "os_image_hash"], "os_image_update"),
            (&["public_logs", "listed"], "visibility_update"),
            (&["name"], "rename"),
            (&["user_config_replaced"], "update"),
            (&["compose_hash", "vcpu"], "update"),
            (&["name", "listed"], "update"),
        ];
        for (fields, plan) in cases {
            assert_eq!(name(fields), Some(plan), "{fields:?}");
        }
        assert_eq!(name(&[]), None);
    }
}
