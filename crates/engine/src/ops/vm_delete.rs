//! Delete: the VM leaves its node, then everything it held is given back. Goes only forward; when the node is gone the
//! operation fails, desired state stays `absent`, and the VM disappears when the node comes back and obeys.

use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::{RunState, VmStatus};

use crate::plan::{Action, Deadline, Plan, Step, Until, Want};

pub static PLAN: Plan = Plan {
    name: "delete",
    version: 1,
    kind: Kind::Vm,
    verb: Verb::Delete,
    noun: "instance",
    from: &VmStatus::ALL,
    target: VmStatus::Deleted,
    accepted: VmStatus::Deleting,
    steps: &[
        Step {
            name: "request",
            action: Action::Want(Want { run_state: RunState::Absent, new_epoch: false }),
            deadline: Deadline::None,
            undo: None,
            then: None,
        },
        Step {
            name: "remove",
            action: Action::Await(Until::Absent),
            deadline: Deadline::Remove,
            undo: None,
            then: None,
        },
        Step {
            name: "release",
            action: Action::Release,
            deadline: Deadline::None,
            undo: None,
            then: Some(VmStatus::Deleted),
        },
    ],
    pivot: None,
    permission: "vms.write",
};
