//! Power off: the guest is asked to stop, and killed when its grace is over. Nothing of it can be undone once the node
//! has been told: a stopped guest is not the guest that was running.

use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::{RunState, VmStatus};

use super::MAY_STOP;
use crate::plan::{Action, Deadline, Plan, Step, Until, Want};

pub static PLAN: Plan = Plan {
    name: "power_off",
    version: 1,
    kind: Kind::Vm,
    verb: Verb::Update,
    noun: "instance",
    from: MAY_STOP,
    target: VmStatus::Stopped,
    accepted: VmStatus::Stopping,
    steps: &[
        Step {
            name: "request",
            action: Action::Want(Want { run_state: RunState::Stopped, new_epoch: false }),
            deadline: Deadline::None,
            undo: None,
            then: None,
        },
        Step {
            name: "stop",
            action: Action::Await(Until::Stopped),
            deadline: Deadline::Stop,
            undo: None,
            then: Some(VmStatus::Stopped),
        },
    ],
    pivot: None,
    permission: "vms.write",
};
