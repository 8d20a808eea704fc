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

use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::VmStatus;

use super::BOOT;
use crate::plan::{Action, Deadline, Plan, Step, Undo, Until};
use crate::revision::Revision;

pub static COMPOSE_UPDATE: Plan = plan("compose_update", &THROUGH_THE_VM, Some(3));
pub static ENV_UPDATE: Plan = plan("env_update", &THROUGH_THE_VM, Some(3));
pub static RESIZE: Plan = plan("resize", &THROUGH_THE_VM, Some(3));
pub static PORTS_UPDATE: Plan = plan("ports_update", &THROUGH_THE_VM, Some(3));
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

/// The plan whose name says what changes between two revisions; `None` when nothing does.
pub fn plan_of(old: &Revision, new: &Revision) -> Option<&'static Plan> {
    let compose = old.compose_but_envs() != new.compose_but_envs();
    let ports = (&old.ports, &old.port_choice) != (&new.ports, &new.port_choice);
    let env = (&old.encrypted_env, &old.env_names) != (&new.encrypted_env, &new.env_names);
    let size = |r: &Revision| (r.vcpu, r.memory_mb, r.disk_gb, r.instance_type.clone());
    let shown = |r: &Revision| (r.listed, r.visibility);
    let groups = [
        // New values may come with a new compose file, and new names change the list of those that it allows.
        (compose || (old.compose_hash != new.compose_hash && !env), &COMPOSE_UPDATE),
        (env && !compose, &ENV_UPDATE),
        // A compose file brings the ports that it publishes.
        (ports && (!compose || old.port_choice != new.port_choice), &PORTS_UPDATE),
        (size(old) != size(new), &RESIZE),
        ((&old.image, &old.os_image_hash) != (&new.image, &new.os_image_hash), &OS_IMAGE_UPDATE),
        ((&old.user_config, old.shutdown) != (&new.user_config, new.shutdown), &UPDATE),
        (shown(old) != shown(new), &VISIBILITY_UPDATE),
        (old.name != new.name, &RENAME),
    ];
    let mut named = groups.into_iter().filter(|(changed, _)| *changed).map(|(_, plan)| plan);
    let first = named.next()?;
    Some(if named.next().is_some() { &UPDATE } else { first })
}

#[cfg(test)]
mod tests {
    use holdfast_model::vm::PortMapping;

    use super::*;

    #[test]
    fn the_name_says_what_is_changed() {
        let before = Revision { compose: r#"{"a":1,"allowed_envs":[]}"#.to_owned(), ..Revision::default() };
        type Change = fn(&mut Revision);
        let name = |changes: &[Change]| {
            let mut after = before.clone();
            changes.iter().for_each(|change| change(&mut after));
            plan_of(&before, &after).map(|plan| plan.name)
        };
        let compose: Change = |r| {
            r.compose_hash = "bb".to_owned();
            r.compose = r.compose.replace("\"a\":1", "\"a\":2");
        };
        let allowed: Change = |r| {
            r.compose_hash.push('c');
            r.compose = r.compose.replace("[]", "[\"A\"]");
        };
        let env: Change = |r| (r.encrypted_env, r.env_names) = (Some("00".to_owned()), vec!["A".to_owned()]);
        let vcpu: Change = |r| r.vcpu = 2;
        let hidden: Change = |r| r.visibility.logs = Some(false);
        let renamed: Change = |r| r.name = "other".to_owned();
        let published: Change = |r| {
            let (protocol, host_address) = (String::new(), String::new());
            r.ports.push(PortMapping { protocol, host_address, host_port: 20_000, vm_port: 80 });
        };
        let chosen: Change = |r| r.port_choice.added.extend([80]);
        let cases: [(&[Change], &str); 17] = [
            (&[published, chosen], "ports_update"),
            (&[compose, published], "compose_update"),
            (&[compose, published, chosen], "update"),
            (&[published, chosen, env], "update"),
            (&[compose], "compose_update"),
            (&[allowed], "compose_update"),
            (&[compose, env], "compose_update"),
            (&[compose, allowed, env], "compose_update"),
            (&[env], "env_update"),
            (&[env, allowed], "env_update"),
            (&[vcpu, |r| r.instance_type = Some("tdx.medium".to_owned())], "resize"),
            (&[|r| r.image = "os-2".to_owned()], "os_image_update"),
            (&[hidden, |r| r.listed = true], "visibility_update"),
            (&[renamed], "rename"),
            (&[|r| r.user_config = Some("x".to_owned())], "update"),
            (&[|r| r.shutdown.force = true], "update"),
            (&[compose, vcpu], "update"),
        ];
        for (index, (changes, plan)) in cases.into_iter().enumerate() {
            assert_eq!(name(changes), Some(plan), "case {index}");
        }
        assert_eq!(name(&[]), None);
    }
}
