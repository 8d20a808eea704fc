//! Shutdown: the guest is asked to stop its app and to power off, in the time that its CVM's settings give it. Where they
//! allow no force, a guest that does not do so is left as it is: the request is withdrawn, and the VM goes on. One that had
//! begun to stop when the way back was asked for (a cancel) stops first and is started again, in the same epoch.

use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::{RunState, VmStatus};

use crate::plan::{Action, Deadline, Plan, Step, Undo, Until, Want};

pub static PLAN: Plan = Plan {
    name: "shutdown",
    version: 1,
    kind: Kind::Vm,
    verb: Verb::Update,
    noun: "instance",
    // Where there is a guest to ask.
    from: &[VmStatus::Running, VmStatus::Starting],
    target: VmStatus::Stopped,
    accepted: VmStatus::ShuttingDown,
    steps: &[
        Step {
            name: "request",
            action: Action::Want(Want { run_state: RunState::Stopped, new_epoch: false }),
            deadline: Deadline::None,
            undo: Some(Undo::Want(Want { run_state: RunState::Running, new_epoch: false }, Until::Started)),
            then: None,
        },
        // The guest's time is part of this step.
        Step {
            name: "stop",
            action: Action::Await(Until::Stopped),
            deadline: Deadline::Stop,
            undo: None,
            then: Some(VmStatus::Stopped),
        },
    ],
    pivot: Some(1),
    permission: "vms.write",
};
