//! `kill -9` of server, node and QEMU while real VMs are made and removed.
//!
//! The one rule: a VM is nobody's child in spirit. Server and node may die and find it running; when it dies itself, that is
//! seen, told and mended.

use std::time::{Duration, Instant};

use holdfast_e2e::cloud::{AFTER_CRASH, BOOT, Cloud, SOON, text};
use holdfast_e2e::leftovers;
use holdfast_harness::{operation, process, until};
use rustix::process::Signal;
use serde_json::json;

fn hello() -> String {
    std::fs::read_to_string(holdfast_e2e::hello_compose()).expect("the sample app is there")
}

fn deploy(cloud: &Cloud, name: &str) -> (String, String) {
    let cvm = cloud.client.deploy(name, &hello(), &json!({})).expect("accepted");
    let create = operation::newest(&cloud.client, &cvm).expect("an operation");
    (cvm, text(&create["id"]))
}

/// The only VM there is.
fn qemu(cloud: &Cloud) -> i32 {
    let found = until(SOON, "QEMU runs", || Ok(process::vms_of(cloud.folder.path()).first().copied()));
    found.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(40)))
}

fn remove(cloud: &Cloud, cvm: &str) {
    cloud.deleted(cvm);
    leftovers::assert_none(cloud, cvm);
}

#[test]
fn server_and_node_killed_while_a_vm_is_made_and_removed() {
    let mut cloud = Cloud::apart(&[]);
    // Before QEMU runs.
    let (cvm, create) = deploy(&cloud, "early");
    cloud.reached(&create, "prepare");
    cloud.node().kill().expect("it was running");
    cloud.server.kill().expect("it was running");
    cloud.server.restart().expect("it starts again");
    cloud.node().restart().expect("it starts again");
    cloud.done(&create, BOOT);
    assert!(super::cli::answer(&cloud, &cvm).contains("Hello"));
    // While it is being removed.
    let delete = cloud.delete(&cvm);
    cloud.reached(&delete, "remove");
    cloud.node().kill().expect("it was running");
    cloud.server.kill().expect("it was running");
    cloud.server.restart().expect("it starts again");
    cloud.node().restart().expect("it starts again");
    cloud.done(&delete, AFTER_CRASH);
    leftovers::assert_none(&cloud, &cvm);
    // While its guest boots: the same QEMU goes on.
    let (cvm, create) = deploy(&cloud, "later");
    cloud.reached(&create, "boot");
    let before = qemu(&cloud);
    cloud.node().kill().expect("it was running");
    cloud.server.kill().expect("it was running");
    assert_eq!(process::vms_of(cloud.folder.path()), [before], "a VM outlives server and node");
    cloud.server.restart().expect("it starts again");
    cloud.node().restart().expect("it starts again");
    cloud.done(&create, BOOT);
    assert_eq!(process::vms_of(cloud.folder.path()), [before], "it was adopted, not started again");
    assert!(super::cli::answer(&cloud, &cvm).contains("Hello"));
    // A clean stop leaves it running as well.
    cloud.node().stop().expect("it was running");
    cloud.server.stop().expect("it was running");
    assert_eq!(process::vms_of(cloud.folder.path()), [before]);
    cloud.server.restart().expect("it starts again");
    cloud.node().restart().expect("it starts again");
    cloud.wait_node();
    assert_eq!(cloud.status(&cvm), "running");
    remove(&cloud, &cvm);
}

#[test]
fn qemu_killed_while_it_boots_runs_and_is_removed() {
    let cloud = Cloud::real();
    let (cvm, create) = deploy(&cloud, "mortal");
    cloud.reached(&create, "boot");
    let first = qemu(&cloud);
    process::signal(first, Signal::KILL).expect("it was running");
    let over = cloud.over(&create, BOOT);
    match over["status"].as_str() {
        Some("done") => assert_eq!(cloud.status(&cvm), "running"),
        Some("failed") => {
            assert_eq!(cloud.status(&cvm), "error", "past the pivot it stays to be looked at");
            let id = cloud.power(&cvm, "start");
            cloud.done(&id, BOOT);
        }
        other => panic!("{other:?}: {over:#}"),
    }
    // While the app runs: seen at once (within 2 s, on a machine that has nothing else to do), then mended by the restart policy.
    super::cli::answer(&cloud, &cvm);
    let second = qemu(&cloud);
    let killed = Instant::now();
    process::signal(second, Signal::KILL).expect("it was running");
    let seen = until(SOON, "the death is seen", || Ok((cloud.status(&cvm) != "running").then_some(())));
    seen.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(40)));
    assert!(killed.elapsed() < Duration::from_secs(5), "seen after {:?}", killed.elapsed());
    cloud.wait_status(&cvm, "running", BOOT);
    assert_ne!(qemu(&cloud), second);
    assert!(super::cli::answer(&cloud, &cvm).contains("Hello"));
    // While it is removed.
    let third = qemu(&cloud);
    let delete = cloud.delete(&cvm);
    cloud.reached(&delete, "remove");
    let _ = process::signal(third, Signal::KILL);
    cloud.done(&delete, AFTER_CRASH);
    leftovers::assert_none(&cloud, &cvm);
}

/// The host loses power: server and QEMU are gone at once, and the kernel that comes up has another boot id.
#[test]
fn a_host_that_was_restarted_runs_what_should_run() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give the server another boot id");
        return;
    }
    let mut cloud = Cloud::real();
    let (cvm, create) = deploy(&cloud, "survivor");
    cloud.done(&create, BOOT);
    let (idle, create) = deploy(&cloud, "idler");
    cloud.done(&create, BOOT);
    let stop = cloud.power(&idle, "stop");
    cloud.done(&stop, BOOT);
    cloud.server.kill().expect("it was running");
    process::kill_vms(cloud.folder.path());
    let none = until(SOON, "every QEMU is gone", || Ok(process::vms_of(cloud.folder.path()).is_empty().then_some(())));
    none.expect("killed");
    let boot_id = cloud.folder.path().join("boot_id");
    std::fs::write(&boot_id, "5f9c3e0a-7d51-4a5e-9d59-0c1a8d1f7b11\n").expect("written");
    cloud.server.set_boot_id(boot_id);
    cloud.server.restart().expect("it starts again");
    cloud.wait_status(&cvm, "running", BOOT);
    assert!(super::cli::answer(&cloud, &cvm).contains("Hello"));
    assert_eq!(cloud.status(&idle), "stopped", "what was stopped stays stopped");
    assert_eq!(process::vms_of(cloud.folder.path()).len(), 1);
    for cvm in [&cvm, &idle] {
        cloud.deleted(cvm);
    }
    leftovers::assert_none(&cloud, &idle);
}
