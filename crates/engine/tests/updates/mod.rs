//! Updates: what is skipped, what starts anew, and the way back.

use holdfast_engine::revision::Effect;
use holdfast_engine::{Direction, ops};
use holdfast_model::error::Code;
use holdfast_model::guest::BootError;
use holdfast_model::node::Phase;
use holdfast_model::operation::Status;
use holdfast_model::vm::{RunState, VmStatus};

use crate::bench::{Bench, Fault};

fn update(effect: Effect) -> Bench {
    let mut bench = Bench::new(&ops::UPDATE);
    bench.world.change.as_mut().expect("a change").effect = effect;
    bench
}

fn epoch(bench: &Bench) -> (u64, u64) {
    bench.world.desired.as_ref().map(|d| (d.generation, d.boot_epoch)).expect("desired state")
}

#[test]
fn a_live_change_waits_for_the_app_alone_and_starts_nothing_anew() {
    let mut bench = update(Effect::Live);
    bench.run();
    assert_eq!(bench.record.status, Status::Done);
    assert_eq!(bench.record.sub_operations, ["apply", "launch"]);
    assert_eq!(epoch(&bench), (8, 2), "a new generation in the same epoch");
    assert_eq!(bench.in_force, Some(Direction::Forward));
    assert!(bench.record.diff.contains_key("field"), "the diff is that of the change");
}

#[test]
fn an_answer_about_the_app_before_is_no_answer() {
    let mut bench = update(Effect::Live);
    let decision = bench.decide();
    bench.write(decision);
    // The report before it said that an app was up; it still does, for the new generation but the old revision.
    bench.world.observed.as_mut().expect("a report").generation = 8;
    let decision = bench.decide();
    bench.write(decision);
    assert!(!bench.over());
    assert_eq!(bench.world.status, VmStatus::Updating);
}

#[test]
fn a_vm_that_does_not_run_gets_it_written_and_is_started_by_nobody() {
    for effect in [Effect::Written, Effect::Live, Effect::Restart] {
        let mut bench = update(effect);
        bench.record.status_before = VmStatus::Stopped;
        bench.world.desired.as_mut().expect("desired state").run_state = RunState::Stopped;
        bench.world.observed.as_mut().expect("a report").phase = Phase::Stopped;
        let decision = bench.decide();
        bench.write(decision);
        assert_eq!(bench.record.status, Status::Done, "{effect:?}: in one decision");
        assert_eq!(bench.record.sub_operations, ["apply"]);
        assert_eq!(bench.world.status, VmStatus::Stopped);
        let generation = if effect == Effect::Written { 7 } else { 8 };
        assert_eq!(epoch(&bench), (generation, 2), "{effect:?}");
    }
}

#[test]
fn what_only_the_control_plane_knows_is_over_at_once() {
    let mut bench = update(Effect::Written);
    let decision = bench.decide();
    bench.write(decision);
    assert_eq!((bench.record.status, bench.world.status), (Status::Done, VmStatus::Running));
    assert_eq!(epoch(&bench), (7, 2));
    assert_eq!(bench.in_force, Some(Direction::Forward));
}

#[test]
fn nothing_to_change_is_done_with_an_empty_diff() {
    let mut bench = update(Effect::Restart);
    bench.world.change = None;
    let decision = bench.decide();
    bench.write(decision);
    assert_eq!(bench.record.status, Status::Done);
    assert!(bench.record.diff.is_empty() && bench.in_force.is_none());
    assert_eq!(epoch(&bench), (7, 2));
}

#[test]
fn a_vm_that_was_not_well_starts_anew_with_the_update() {
    for before in [VmStatus::Error, VmStatus::Exited, VmStatus::Starting] {
        let mut bench = update(Effect::Live);
        bench.record.status_before = before;
        bench.run();
        assert_eq!(epoch(&bench), (8, 3), "{before:?}");
        assert_eq!(bench.world.status, VmStatus::Running);
    }
}

#[test]
fn an_app_that_does_not_come_up_leaves_the_revision_before_running() {
    for effect in [Effect::Live, Effect::Restart] {
        let mut bench = update(effect);
        bench.inject("launch", Fault::BootError);
        bench.run();
        assert_eq!(bench.record.status, Status::Failed);
        assert_eq!(bench.record.failure.as_ref().map(|f| f.code), Some(Code::BootFailed));
        assert_eq!(bench.world.status, VmStatus::Running, "{effect:?}");
        assert_eq!(bench.in_force, Some(Direction::Undo));
        let forth_and_back = if effect == Effect::Restart { 2 } else { 0 };
        assert_eq!(epoch(&bench), (9, 2 + forth_and_back), "{effect:?}");
        assert_eq!(bench.record.sub_operations.last().map(String::as_str), Some("undo_apply"));
    }
}

#[test]
fn a_guest_that_hangs_is_started_anew_with_the_revision_before() {
    let mut bench = update(Effect::Live);
    bench.inject("launch", Fault::Silence);
    while bench.record.direction == Direction::Forward {
        bench.round();
        if let Some(seen) = bench.world.observed.as_mut() {
            seen.agent = false;
        }
    }
    bench.run();
    assert_eq!((bench.record.status, bench.world.status), (Status::Failed, VmStatus::Running));
    assert_eq!(epoch(&bench), (9, 3));
}

#[test]
fn an_app_that_does_not_come_back_either_is_an_error_to_look_at() {
    let mut bench = update(Effect::Live);
    bench.inject("launch", Fault::BootError);
    bench.broken_undo = true;
    bench.run();
    assert_eq!(bench.record.status, Status::Failed, "the node refused nothing, so nothing is stuck");
    assert_eq!(bench.world.status, VmStatus::Error);
    let failure = bench.record.failure.expect("the first failure");
    assert!(failure.message.contains("exit status 1"), "{}", failure.message);
}

#[test]
fn a_create_whose_first_report_is_a_boot_error_is_past_its_pivot() {
    let mut bench = Bench::new(&ops::VM_CREATE);
    while ops::VM_CREATE.steps[bench.record.step].name != "start" {
        bench.round();
    }
    let seen = bench.world.observed.as_mut().expect("a report");
    (seen.phase, seen.boot_epoch, seen.agent) = (Phase::Running, 1, true);
    seen.boot_error = Some(BootError { step: "pre-launch".into(), message: "exit status 1".into() });
    let decision = bench.decide();
    bench.write(decision);
    assert_eq!((bench.record.status, bench.world.status), (Status::Failed, VmStatus::Error));
    assert!(!bench.released, "there are a disk and logs to look at");
}

#[test]
fn a_node_that_is_gone_finds_the_revision_before_when_it_returns() {
    let mut bench = update(Effect::Restart);
    bench.inject("start", Fault::Silence);
    bench.silent_undo = true;
    bench.run();
    assert_eq!((bench.record.status, bench.world.status), (Status::Failed, VmStatus::Error));
    assert_eq!(bench.in_force, Some(Direction::Undo));
    assert_eq!(epoch(&bench).0, 9);
}
