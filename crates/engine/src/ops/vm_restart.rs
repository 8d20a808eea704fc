//! Restart: the VM is stopped and started in a new epoch, on the same disks. Cannot be undone once the node was told.

use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::{RunState, VmStatus};

use super::{BOOT, LAUNCH, MAY_STOP};
use crate::plan::{Action, Deadline, Plan, Step, Until, Want};

pub static PLAN: Plan = Plan {
    name: "restart",
    version: 1,
    kind: Kind::Vm,
    verb: Verb::Restart,
    noun: "instance",
    from: MAY_STOP,
    target: VmStatus::Running,
    accepted: VmStatus::Restarting,
    steps: &[
        Step {
            name: "request",
            action: Action::Want(Want { run_state: RunState::Running, new_epoch: true }),
            deadline: Deadline::None,
            undo: None,
            then: None,
        },
        // The guest's grace is part of this step, and the VM keeps its own word until the app is up.
        Step { name: "start", action: Action::Await(Until::Started), deadline: Deadline::Stop, undo: None, then: None },
        BOOT,
        LAUNCH,
    ],
    pivot: None,
    permission: "vms.write",
};
