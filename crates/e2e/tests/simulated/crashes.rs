//! `kill -9` of server, of node and of both, at each step of create and of delete.
//!
//! The one rule: after the restart the operation is done or cleanly undone, and deleting the CVM leaves nothing.

use holdfast_e2e::cloud::{AFTER_CRASH, Cloud, SOON};
use holdfast_e2e::leftovers;
use holdfast_harness::operation;

const CREATE: [&str; 6] = ["reserve", "place", "prepare", "start", "boot", "launch"];
const DELETE: [&str; 3] = ["request", "remove", "release"];
/// Steps that wait for the node; the others are over in one transaction and can hardly be caught at work.
const LONG: [&str; 5] = ["prepare", "start", "boot", "launch", "remove"];
const STEP_MS: u64 = 120;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Server,
    Node,
    Both,
}

fn simulated() -> [String; 4] {
    ["--hypervisor", "simulated", "--simulated-step-ms", "120"].map(str::to_owned)
}

fn cloud(victim: Victim) -> Cloud {
    match victim {
        Victim::Both => Cloud::simulated(STEP_MS),
        _ => Cloud::apart(&simulated().each_ref().map(String::as_str)),
    }
}

fn strike(cloud: &mut Cloud, victim: Victim) {
    match victim {
        Victim::Server | Victim::Both => {
            cloud.server.kill().expect("the server was running");
            cloud.server.restart().expect("the server starts again");
        }
        Victim::Node => {
            cloud.node().kill().expect("the node was running");
            cloud.node().restart().expect("the node starts again");
        }
    }
}

fn at_each_step(victim: Victim) {
    let mut cloud = cloud(victim);
    let (mut aimed, mut caught) = (0, 0);
    for step in CREATE {
        let (cvm, id) = cloud.deploy(&format!("create-{step}"));
        let seen = cloud.reached(&id, step);
        strike(&mut cloud, victim);
        if LONG.contains(&step) {
            aimed += 1;
            caught += i32::from(seen);
        }
        let over = cloud.over(&id, AFTER_CRASH);
        match over["status"].as_str() {
            Some("done") => assert_eq!(cloud.status(&cvm), "running", "{victim:?} at {step}"),
            // Undone: the CVM never was, or it is there to look at.
            Some("failed") => assert!(["deleted", "error"].contains(&cloud.status(&cvm).as_str()), "{over:#}"),
            other => panic!("{victim:?} at {step}: {other:?} {over:#}"),
        }
        if cloud.status(&cvm) != "deleted" {
            cloud.deleted(&cvm);
        }
        leftovers::assert_none(&cloud, &cvm);
    }
    for step in DELETE {
        let cvm = cloud.deployed(&format!("delete-{step}"), SOON);
        let id = cloud.delete(&cvm);
        let seen = cloud.reached(&id, step);
        strike(&mut cloud, victim);
        if LONG.contains(&step) {
            aimed += 1;
            caught += i32::from(seen);
        }
        let over = cloud.done(&id, AFTER_CRASH);
        assert_eq!(operation::steps(&over), DELETE);
        assert_eq!(cloud.status(&cvm), "deleted", "{victim:?} at {step}");
        leftovers::assert_none(&cloud, &cvm);
    }
    assert!(caught >= aimed - 1, "of {aimed} kills only {caught} came while the step was at work");
}

#[test]
fn server_killed_at_each_step() {
    at_each_step(Victim::Server);
}

#[test]
fn node_killed_at_each_step() {
    at_each_step(Victim::Node);
}

#[test]
fn server_with_its_node_killed_at_each_step() {
    at_each_step(Victim::Both);
}

/// Not at a step but after each of many delays, so that the moments between the steps are hit too.
#[test]
fn server_killed_at_any_moment() {
    let mut cloud = Cloud::simulated(20);
    for delay in (0..160).step_by(8) {
        let name = format!("moment-{delay}");
        let provisioned = cloud.client.provision(&name, holdfast_e2e::cloud::COMPOSE, &serde_json::json!({}));
        let provisioned = provisioned.and_then(holdfast_harness::client::Answer::ok).expect("provisioned");
        let committed = cloud.client.commit(&provisioned, None).and_then(holdfast_harness::client::Answer::ok);
        let cvm = committed.expect("committed")["vm_uuid"].as_str().expect("a uuid").to_owned();
        // The delay is what is tested.
        std::thread::sleep(std::time::Duration::from_millis(delay));
        strike(&mut cloud, Victim::Both);
        let create = operation::newest(&cloud.client, &cvm).expect("what was answered is not lost");
        cloud.done(create["id"].as_str().expect("an id"), AFTER_CRASH);
        let delete = cloud.delete(&cvm);
        std::thread::sleep(std::time::Duration::from_millis(delay / 2));
        strike(&mut cloud, Victim::Both);
        cloud.done(&delete, AFTER_CRASH);
        leftovers::assert_none(&cloud, &cvm);
    }
}

/// Many operations in flight at once.
#[test]
fn server_killed_with_many_operations_in_flight() {
    let mut cloud = Cloud::simulated(100);
    let started: Vec<_> = (0..30).map(|n| cloud.deploy(&format!("many-{n}"))).collect();
    for _ in 0..3 {
        strike(&mut cloud, Victim::Both);
    }
    for (cvm, id) in &started {
        cloud.done(id, AFTER_CRASH);
        assert_eq!(cloud.status(cvm), "running");
    }
    let deletes: Vec<_> = started.iter().map(|(cvm, _)| cloud.delete(cvm)).collect();
    strike(&mut cloud, Victim::Both);
    for id in &deletes {
        cloud.done(id, AFTER_CRASH);
    }
    for (cvm, _) in &started {
        leftovers::assert_none(&cloud, cvm);
    }
}

/// A power operation is as durable as a create.
#[test]
fn server_killed_during_power_operations() {
    let mut cloud = Cloud::simulated(60);
    let cvm = cloud.deployed("power", SOON);
    for (verb, status) in [("stop", "stopped"), ("start", "running"), ("restart", "running")] {
        let id = cloud.power(&cvm, verb);
        strike(&mut cloud, Victim::Both);
        cloud.done(&id, AFTER_CRASH);
        assert_eq!(cloud.status(&cvm), status, "after {verb}");
    }
    cloud.deleted(&cvm);
    leftovers::assert_none(&cloud, &cvm);
}
