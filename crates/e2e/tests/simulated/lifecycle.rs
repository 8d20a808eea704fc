//! The life of a CVM across restarts of the real process: deletion at a time, and a guest that does not power off.

use std::time::Duration;

use holdfast_e2e::cloud::{AFTER_CRASH, Cloud, SOON, text};
use holdfast_harness::client::Answer;
use holdfast_harness::until;
use holdfast_model::Timestamp;
use serde_json::{Value, json};

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Timestamp(i64::try_from(since.as_micros()).expect("a time"))
}

fn patch(cloud: &Cloud, path: &str, body: &Value) -> Value {
    let answer = cloud.client.send("PATCH", path, &[], Some(body.to_string().into())).expect("the server answers");
    answer.ok().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn schedule(cloud: &Cloud, cvm: &str, at: &Value) {
    patch(cloud, &format!("/api/v1/cvms/{cvm}/scheduled-delete"), &json!({ "scheduled_delete_at": at }));
}

/// When it is to be deleted, as the details of the version say that have it.
fn scheduled(cloud: &Cloud, cvm: &str) -> Value {
    let version = [("x-phala-version", "2025-10-28")];
    let detail = cloud.client.send("GET", &format!("/api/v1/cvms/{cvm}"), &version, None);
    detail.and_then(Answer::ok).expect("its details")["scheduled_delete_at"].clone()
}

/// Types of a CVM's operations, newest first.
fn types(cloud: &Cloud, cvm: &str) -> Vec<String> {
    let page = cloud.client.get(&format!("/api/v1/cvms/{cvm}/operations")).expect("the server answers").json();
    page["items"].as_array().expect("items").iter().map(|item| text(&item["operation_type"])).collect()
}

#[test]
fn a_scheduled_delete_happens_after_a_restart_and_once() {
    let mut cloud = Cloud::simulated(5);
    let names = ["gone-app", "kept-app", "later-app"];
    let [gone, kept, later] = names.map(|name| cloud.deployed(name, SOON));
    let (at, far) = (now().plus(Duration::from_secs(6)), json!(now().plus(Duration::from_secs(86_400)).to_string()));
    for cvm in [&gone, &kept] {
        schedule(&cloud, cvm, &json!(at.to_string()));
    }
    schedule(&cloud, &later, &far);
    schedule(&cloud, &kept, &Value::Null);
    assert_eq!((scheduled(&cloud, &gone), scheduled(&cloud, &kept)), (json!(at.to_string()), Value::Null));
    // Its time comes while no server is there.
    cloud.server.kill().expect("it was running");
    until(SOON, "its time has come", || Ok((now() > at).then_some(()))).expect("time passes");
    cloud.server.restart().expect("it starts again");
    cloud.wait_status(&gone, "deleted", SOON);
    assert_eq!(types(&cloud, &gone), ["delete", "create"]);
    // Nothing of it is left to be done again.
    cloud.server.kill().expect("it was running");
    cloud.server.restart().expect("it starts once more");
    cloud.wait_node();
    assert_eq!(types(&cloud, &gone), ["delete", "create"]);
    assert_eq!((cloud.status(&kept), cloud.status(&later)), ("running".to_owned(), "running".to_owned()));
    assert_eq!(scheduled(&cloud, &later), far, "it is there after the restarts");
    // Whose deed it was.
    let log = cloud.client.get("/holdfast/v1/audit-logs?action=vm.delete").expect("the server answers").json();
    let [deed] = log["items"].as_array().expect("items").as_slice() else { panic!("one delete: {log:#}") };
    assert_eq!((&deed["actor"]["name"], &deed["target"]["id"]), (&json!("admin"), &json!(gone)));
    assert!(text(&deed["path"]).ends_with("/scheduled-delete"), "{deed:#}");
    // While the server runs, it is not late.
    let soon = now().plus(Duration::from_secs(2));
    schedule(&cloud, &later, &json!(soon.to_string()));
    cloud.wait_status(&later, "deleted", SOON);
    assert_eq!(types(&cloud, &later), ["delete", "create"]);
    assert_eq!(cloud.status(&kept), "running");
}

#[test]
fn a_deaf_guest_outlives_a_shutdown_that_may_not_use_force() {
    let cloud = Cloud::simulated(5);
    let compose = "services:\n  holdfast-sim-deaf:\n    image: x\n";
    let cvm = cloud.client.deploy("deaf-app", compose, &json!({})).expect("the deployment is accepted");
    cloud.wait_status(&cvm, "running", SOON);
    patch(&cloud, &format!("/api/v1/cvms/{cvm}"), &json!({ "shutdown_timeout": 10 }));
    cloud.wait_status(&cvm, "running", SOON);
    let shutdown = cloud.power(&cvm, "shutdown");
    assert_eq!(cloud.status(&cvm), "shutting_down");
    let over = cloud.over(&shutdown, AFTER_CRASH);
    assert_eq!((&over["status"], &over["error"]["code"]), (&json!("failed"), &json!("HF-0208")), "{over:#}");
    cloud.wait_status(&cvm, "running", SOON);
    let record = cloud.client.get(&format!("/api/v1/cvms/{cvm}/state")).expect("the server answers").json();
    assert_eq!((&record["status"], record.get("exited_at")), (&json!("running"), None), "{record}");
    // Force does not ask.
    let body = Some(json!({ "force": true }).to_string().into());
    let restart = cloud.client.send("POST", &format!("/api/v1/cvms/{cvm}/restart"), &[], body);
    restart.and_then(Answer::ok).expect("the restart is accepted");
    cloud.wait_status(&cvm, "running", SOON);
}
