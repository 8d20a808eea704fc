//! Create: from a reservation to a running app. Pivots when QEMU runs: an app that then fails to boot leaves the CVM in
//! `error`, with disk and logs to look at.

use holdfast_model::operation::{Kind, Verb};
use holdfast_model::vm::{RunState, VmStatus};

use super::{BOOT, LAUNCH, START};
use crate::plan::{Action, Deadline, Plan, Step, Undo, Until, Want};

pub static PLAN: Plan = Plan {
    name: "create",
    version: 1,
    kind: Kind::Vm,
    verb: Verb::Create,
    noun: "instance",
    from: &[VmStatus::Creating],
    target: VmStatus::Running,
    accepted: VmStatus::Creating,
    steps: &[
        Step {
            name: "reserve",
            action: Action::Reserved,
            deadline: Deadline::None,
            undo: Some(Undo::Release),
            then: None,
        },
        Step {
            name: "place",
            action: Action::Want(Want { run_state: RunState::Running, new_epoch: true }),
            deadline: Deadline::None,
            undo: Some(Undo::Want(Want { run_state: RunState::Absent, new_epoch: false }, Until::Absent)),
            then: None,
        },
        Step {
            name: "prepare",
            action: Action::Await(Until::Prepared),
            deadline: Deadline::Prepare,
            undo: None,
            then: None,
        },
        START,
        BOOT,
        LAUNCH,
    ],
    pivot: Some(3),
    permission: "vms.write",
};
