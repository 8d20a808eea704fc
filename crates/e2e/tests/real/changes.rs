//! `kill -9` of server and node, of QEMU, and of all of them by the host's power, while a real VM is changed and stopped.
//!
//! The one rule: an operation that was answered ends as if nothing had happened, or is undone and says so; the VM is what
//! its newest revision says, and runs once.

use holdfast_e2e::cloud::{AFTER_CRASH, BOOT, Cloud, text};
use holdfast_e2e::{leftovers, truth};
use holdfast_harness::client::Answer;
use holdfast_harness::{operation, process, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A script: where it is crashed, containers make no difference but take long.
fn deployed(cloud: &Cloud, name: &str) -> String {
    let app = json!({ "name": "", "runner": "bash", "bash_script": "sleep infinity", "public_logs": true });
    let cvm = cloud.client.deploy(name, "", &json!({ "compose_file": app })).expect("accepted");
    let create = operation::newest(&cloud.client, &cvm).expect("an operation");
    cloud.done(&text(&create["id"]), BOOT);
    cvm
}

/// Asks for a change; answers the operation's id.
fn patch(cloud: &Cloud, cvm: &str, body: &Value) -> String {
    let answer = cloud.client.send("PATCH", &format!("/api/v1/cvms/{cvm}"), &[], Some(body.to_string().into()));
    text(&answer.and_then(Answer::ok).expect("accepted")["correlation_id"])
}

fn machines(cloud: &Cloud) -> Vec<i32> {
    process::vms_of(cloud.folder.path())
}

fn kill_machine(cloud: &Cloud) {
    let found = machines(cloud);
    assert_eq!(found.len(), 1, "one machine runs");
    process::signal(found[0], Signal::KILL).expect("it was running");
}

/// Server and node are one process here.
fn kill_server(cloud: &mut Cloud) {
    cloud.server.kill().expect("it was running");
    cloud.server.restart().expect("it starts again");
}

fn cut_power(cloud: &mut Cloud, boots: u32) {
    cloud.server.kill().expect("it was running");
    process::kill_vms(cloud.folder.path());
    let gone = until(AFTER_CRASH, "every QEMU is gone", || Ok(machines(cloud).is_empty().then_some(())));
    gone.expect("killed");
    let boot_id = cloud.folder.path().join("boot_id");
    std::fs::write(&boot_id, format!("5f9c3e0a-7d51-4a5e-9d59-{boots:012}\n")).expect("written");
    cloud.server.set_boot_id(boot_id);
    cloud.server.restart().expect("it starts again");
}

/// The operation is over, the VM is as it should be, and both sides agree about it.
fn settled(cloud: &Cloud, cvm: &str, id: &str, status: &str) {
    let over = cloud.done(id, BOOT);
    truth::assert_story(cloud, &over);
    cloud.wait_status(cvm, status, BOOT);
    let why = || truth::disagreement(cloud, cvm, 1);
    let agreed = until(AFTER_CRASH, "server and node agree", || Ok(why().is_none().then_some(())));
    agreed.unwrap_or_else(|e| panic!("{e}: {}", why().unwrap_or_default()));
    assert_eq!(machines(cloud).len(), usize::from(status == "running"), "QEMU processes");
    truth::assert_consistent(cloud);
}

#[test]
fn killed_while_a_vm_is_updated_resized_and_stopped() {
    let mut cloud = Cloud::real();
    let cvm = deployed(&cloud, "changing");
    let first = machines(&cloud);
    // A running guest takes the update over, whoever is told of it.
    let id = patch(&cloud, &cvm, &json!({ "pre_launch_script": "echo one" }));
    cloud.reached(&id, "launch");
    kill_server(&mut cloud);
    settled(&cloud, &cvm, &id, "running");
    assert_eq!(machines(&cloud), first, "the VM went on");
    // Its machine dies over it: it comes up with the newer app.
    let id = patch(&cloud, &cvm, &json!({ "pre_launch_script": "echo two; sleep 2" }));
    cloud.reached(&id, "launch");
    kill_machine(&cloud);
    settled(&cloud, &cvm, &id, "running");
    assert_ne!(machines(&cloud), first);
    // While the larger VM boots.
    let id = patch(&cloud, &cvm, &json!({ "vcpu": 2 }));
    cloud.reached(&id, "boot");
    kill_machine(&cloud);
    settled(&cloud, &cvm, &id, "running");
    let resource = &cloud.client.get(&format!("/api/v1/cvms/{cvm}")).expect("it answers").json()["resource"];
    assert_eq!(resource["vcpu"], 2, "{resource}");
    // While it stops.
    let id = cloud.power(&cvm, "stop");
    cloud.reached(&id, "stop");
    let _ = machines(&cloud).first().map(|machine| process::signal(*machine, Signal::KILL));
    settled(&cloud, &cvm, &id, "stopped");
    cloud.deleted(&cvm);
    leftovers::assert_none(&cloud, &cvm);
}

#[test]
fn a_host_restarted_while_a_vm_is_resized_and_stopped() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give the server another boot id");
        return;
    }
    let mut cloud = Cloud::real();
    let cvm = deployed(&cloud, "resizing");
    let id = patch(&cloud, &cvm, &json!({ "memory": 1024, "disk_size": 22 }));
    cloud.reached(&id, "start");
    cut_power(&mut cloud, 1);
    settled(&cloud, &cvm, &id, "running");
    let id = cloud.power(&cvm, "stop");
    cloud.reached(&id, "stop");
    cut_power(&mut cloud, 2);
    settled(&cloud, &cvm, &id, "stopped");
    cloud.deleted(&cvm);
    leftovers::assert_none(&cloud, &cvm);
}
