//! Power on: a stopped, exited or broken VM boots its disks again, in a new epoch. Pivots when QEMU runs.

use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::{RunState, VmStatus};

use super::{BOOT, LAUNCH, MAY_START, START};
use crate::plan::{Action, Deadline, Plan, Step, Undo, Until, Want};

pub static PLAN: Plan = Plan {
    name: "power_on",
    version: 1,
    kind: Kind::Vm,
    verb: Verb::Update,
    noun: "instance",
    from: MAY_START,
    target: VmStatus::Running,
    accepted: VmStatus::Starting,
    steps: &[
        Step {
            name: "request",
            action: Action::Want(Want { run_state: RunState::Running, new_epoch: true }),
            deadline: Deadline::None,
            undo: Some(Undo::Want(Want { run_state: RunState::Stopped, new_epoch: false }, Until::Stopped)),
            then: None,
        },
        START,
        BOOT,
        LAUNCH,
    ],
    pivot: Some(1),
    permission: "vms.write",
};
