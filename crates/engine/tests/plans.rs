//! Every plan, four ways: each step twice, a failure injected at each step (and asserted to be at that step), each undo
//! repeated, and nothing left over. The node is a model that moves one phase at a time; the engine is the real one.

mod bench;
mod updates;

use bench::{Bench, Fault};
use holdfast_engine::{Action, Direction, Next, Plan, Undo, ops};
use holdfast_model::error::Code;
use holdfast_model::node::Phase;
use holdfast_model::operation::Status;
use holdfast_model::vm::{RunState, VmStatus};

fn waiting_steps(plan: &Plan) -> Vec<&'static str> {
    plan.steps.iter().filter(|s| matches!(s.action, Action::Await(_))).map(|s| s.name).collect()
}

#[test]
fn every_plan_ends_where_it_says() {
    for plan in ops::ALL {
        let mut bench = Bench::new(plan);
        bench.run();
        assert_eq!(bench.record.status, Status::Done, "{}", plan.name);
        assert_eq!(bench.world.status, plan.target, "{}", plan.name);
        let names: Vec<_> = plan.steps.iter().map(|s| s.name.to_owned()).collect();
        assert_eq!(bench.record.sub_operations, names);
        let last = bench.events.last().expect("events");
        assert_eq!(last.event_type, plan.event("end"));
        assert_eq!(last.state, plan.target);
        assert_eq!(bench.released, plan.target == VmStatus::Deleted);
        for event in &bench.events {
            assert!(plan.event_types().contains(&event.event_type), "{} is not in the catalogue", event.event_type);
        }
    }
}

#[test]
fn every_step_twice_changes_nothing_the_second_time() {
    for plan in ops::ALL {
        let mut bench = Bench::new(plan);
        while !bench.over() {
            let once = bench.decide();
            assert_eq!(once, bench.decide(), "{}: the same input gives the same decision", plan.name);
            bench.write(once);
            let again = bench.decide();
            assert!(again.events.is_empty() && again.desired.is_none() && again.status.is_none() && !again.release);
            assert_eq!(again.revise, None);
            assert_eq!(again.record, bench.record, "{}: a decision that was written is not made again", plan.name);
            bench.node_moves();
        }
    }
}

#[test]
fn a_refusal_at_each_step_fails_there() {
    for plan in ops::ALL {
        for step in waiting_steps(plan) {
            for fault in [Fault::Refuse, Fault::Silence] {
                let mut bench = Bench::new(plan);
                bench.inject(step, fault);
                bench.run();
                let index = plan.steps.iter().position(|s| s.name == step).expect("a step");
                let failed_at: Vec<_> = bench.failed_steps();
                assert_eq!(failed_at.first().map(String::as_str), Some(step), "{} {step} {fault:?}", plan.name);
                let failure = bench.record.failure.clone().expect("a failure");
                let codes = [Code::NodeFailed, Code::StepTimeout, Code::BootTimeout];
                assert!(codes.contains(&failure.code), "{} {step}: {failure:?}", plan.name);
                assert!(!failure.message.contains("/host/path"), "the node's own words are not for tenants");
                assert_eq!(bench.record.status, Status::Failed, "{} {step} {fault:?}", plan.name);
                if plan.past_pivot(index) {
                    assert_eq!(bench.world.status, VmStatus::Error);
                    assert!(!bench.released, "after the pivot everything is kept to look at");
                } else {
                    bench.assert_nothing_left();
                }
            }
        }
    }
}

#[test]
fn a_boot_error_fails_the_step_that_waits_for_the_guest() {
    for plan in ops::ALL.into_iter().filter(|p| waiting_steps(p).contains(&"launch")) {
        let mut bench = Bench::new(plan);
        bench.inject("launch", Fault::BootError);
        bench.run();
        assert_eq!(bench.failed_steps(), ["launch"]);
        let failure = bench.record.failure.clone().expect("a failure");
        assert_eq!(failure.code, Code::BootFailed);
        assert!(failure.message.contains("pre-launch"), "{}", failure.message);
        if plan.past_pivot(plan.steps.len() - 1) {
            assert_eq!(bench.world.status, VmStatus::Error);
        } else {
            bench.assert_nothing_left();
        }
    }
}

#[test]
fn a_cancel_before_the_pivot_undoes_and_after_it_does_nothing() {
    for plan in ops::ALL {
        for rounds in 0..12 {
            let mut bench = Bench::new(plan);
            for _ in 0..rounds {
                bench.round();
            }
            if bench.over() {
                break;
            }
            let begun = bench.record.step > 0 || bench.record.entered;
            let undoable = !begun || !plan.past_pivot(bench.record.step);
            bench.record.cancelled_by = Some("somebody".to_owned());
            bench.run();
            if undoable {
                assert_eq!(bench.record.status, Status::Cancelled, "{} after {rounds} rounds", plan.name);
                assert_eq!(bench.record.failure.as_ref().map(|f| f.code), Some(Code::Cancelled));
                bench.assert_nothing_left();
            } else {
                assert_eq!(bench.record.status, Status::Done, "{} after {rounds} rounds", plan.name);
            }
        }
    }
}

#[test]
fn an_undo_that_stops_a_broken_vm_leaves_it_stopped() {
    for before in [VmStatus::Error, VmStatus::Exited] {
        let mut bench = Bench::new(&ops::VM_POWER_ON);
        bench.record.status_before = before;
        bench.inject("start", Fault::Refuse);
        bench.run();
        assert_eq!(bench.record.status, Status::Failed);
        assert_eq!(bench.world.status, VmStatus::Stopped, "as it is wanted and as it was seen");
    }
}

#[test]
fn a_guest_that_stays_fails_the_shutdown_and_runs_on() {
    let mut bench = Bench::new(&ops::VM_SHUTDOWN);
    bench.inject("stop", Fault::Stays);
    bench.run();
    assert_eq!(bench.record.status, Status::Failed);
    assert_eq!(bench.record.failure.as_ref().map(|f| f.code), Some(Code::GuestStays));
    assert_eq!(bench.failed_steps(), ["stop"]);
    assert_eq!(bench.record.sub_operations, ["request", "stop", "undo_request"]);
    assert_eq!(bench.world.status, VmStatus::Running);
    let desired = bench.world.desired.as_ref().map(|d| (d.run_state, d.boot_epoch));
    assert_eq!(desired, Some((RunState::Running, 2)), "in the epoch that it runs in");
}

#[test]
fn what_is_to_be_removed_is_never_started_again() {
    let plans = [&ops::VM_POWER_ON, &ops::VM_POWER_OFF, &ops::VM_SHUTDOWN, &ops::VM_RESTART];
    for plan in plans.into_iter().chain([&ops::COMPOSE_UPDATE, &ops::RENAME]) {
        let mut bench = Bench::new(plan);
        let desired = bench.world.desired.as_mut().expect("desired state");
        (desired.run_state, bench.record.status_before) = (RunState::Absent, VmStatus::Error);
        bench.run();
        assert_eq!(bench.record.status, Status::Failed, "{}", plan.name);
        assert_eq!(bench.record.failure.as_ref().map(|f| f.code), Some(Code::WrongState));
        assert_eq!(bench.world.desired.as_ref().map(|d| (d.generation, d.run_state)), Some((7, RunState::Absent)));
        assert_eq!(bench.world.status, VmStatus::Error);
        assert!(!bench.released);
    }
    let mut bench = Bench::new(&ops::VM_DELETE);
    bench.world.desired.as_mut().expect("desired state").run_state = RunState::Absent;
    bench.run();
    assert_eq!(bench.record.status, Status::Done, "a delete can be asked for again");
}

#[test]
fn what_was_removed_while_an_operation_waited_its_turn_is_released_with_its_end() {
    let mut bench = Bench::new(&ops::VM_RESTART);
    bench.world.desired.as_mut().expect("desired state").run_state = RunState::Absent;
    bench.world.observed.as_mut().expect("a report").phase = Phase::Absent;
    bench.run();
    assert_eq!(bench.record.status, Status::Failed);
    assert!(bench.released, "nobody else gives it back");
    assert_eq!(bench.world.status, VmStatus::Deleted);
}

#[test]
fn every_undo_can_be_repeated() {
    for plan in ops::ALL {
        for step in waiting_steps(plan) {
            let mut bench = Bench::new(plan);
            bench.inject(step, Fault::Refuse);
            while !bench.over() {
                let decision = bench.decide();
                bench.write(decision);
                if bench.record.direction == Direction::Undo {
                    let again = bench.decide();
                    assert!(again.events.is_empty() && again.desired.is_none() && !again.release);
                    assert_eq!(again.revise, None);
                }
                bench.node_moves();
            }
            let undone: Vec<_> = bench.record.sub_operations.iter().filter(|s| s.starts_with("undo_")).collect();
            let mut once = undone.clone();
            once.dedup();
            assert_eq!(undone, once, "{} {step}: an undo ran twice", plan.name);
        }
    }
}

#[test]
fn an_undo_that_the_node_refuses_is_stuck_and_stays_visible() {
    for plan in ops::ALL {
        let Some(pivot) = plan.pivot else { continue };
        let Some(step) = waiting_steps(plan)
            .into_iter()
            .find(|s| plan.steps.iter().position(|p| p.name == *s).is_some_and(|i| i <= pivot))
        else {
            continue;
        };
        let mut bench = Bench::new(plan);
        bench.inject(step, Fault::Refuse);
        bench.refuse_undo = true;
        bench.run();
        assert_eq!(bench.record.status, Status::Stuck, "{}", plan.name);
        assert!(!bench.record.status.is_terminal() && !bench.released);
        assert!(bench.record.failure.as_ref().and_then(|f| f.internal.as_ref()).is_some());
    }
}

#[test]
fn a_node_that_is_gone_during_an_undo_leaves_a_tombstone_and_the_capacity_held() {
    let plan = &ops::VM_CREATE;
    let mut bench = Bench::new(plan);
    bench.inject("prepare", Fault::Refuse);
    bench.silent_undo = true;
    bench.run();
    assert_eq!(bench.record.status, Status::Failed);
    assert_eq!(bench.world.desired.as_ref().map(|d| d.run_state), Some(RunState::Absent));
    assert!(!bench.released, "what the node may still hold is not given away");
    assert_eq!(bench.world.status, VmStatus::Error);
}

#[test]
fn terminal_records_never_change() {
    for plan in ops::ALL {
        let mut bench = Bench::new(plan);
        bench.run();
        let after = bench.decide();
        assert_eq!(after.record, bench.record);
        assert_eq!(after.next, Next::Never);
        assert!(after.events.is_empty());
    }
}

#[test]
fn plans_are_well_formed() {
    for plan in ops::ALL {
        assert!(!plan.steps.is_empty());
        assert_eq!(ops::find(plan.name, plan.version).map(|p| p.name), Some(plan.name));
        if let Some(pivot) = plan.pivot {
            assert!(pivot < plan.steps.len());
        }
        for (index, step) in plan.steps.iter().enumerate() {
            if step.undo.is_some() {
                assert!(!plan.past_pivot(index), "{}: {} has an undo that never runs", plan.name, step.name);
            }
            if step.action == Action::Revise && !plan.past_pivot(index) {
                assert!(matches!(step.undo, Some(Undo::Revise(_))), "{}: {} cannot be undone", plan.name, step.name);
            }
            if matches!(step.action, Action::Want(_)) && !plan.past_pivot(index) {
                assert!(matches!(step.undo, Some(Undo::Want(..))), "{}: {} cannot be undone", plan.name, step.name);
            }
        }
    }
}
