//! The life of an app as its owner lives it: the official command line against a real VM.
//!
//! The one rule: after each command the ledger is compared with what was done, so that a command which merely looks right
//! does not pass.

use std::time::Duration;

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{BOOT, Cloud, text};
use holdfast_e2e::leftovers;
use holdfast_harness::{operation, until};
use serde_json::Value;

const NAME: &str = "greeter";

/// What the app answers on its published port.
pub fn answer(cloud: &Cloud, cvm: &str) -> String {
    let url = cloud.client.app_urls(cvm).expect("the CVM has a detail");
    let url = url.first().expect("the app publishes a port");
    // As long as a boot may take: after a restart of the host a status of before it may still be shown.
    let answer = until(BOOT, &format!("{url} answers"), || {
        Ok(cloud.client.send("GET", url, &[], None).ok().filter(|a| a.status == 200))
    });
    answer.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(40))).text
}

/// The newest operation is the one just asked for, it ends well, and all three views tell it alike.
fn ledger(cloud: &Cloud, cvm: &str, verb: &str, target: &str, count: usize) {
    let newest = operation::newest(&cloud.client, cvm).expect("an operation");
    let id = text(&newest["id"]);
    let over = cloud.done(&id, BOOT);
    assert_eq!(over["operation_type"], verb, "{over:#}");
    let page = cloud.client.get(&format!("/api/v1/cvms/{cvm}/operations")).expect("it answers").json();
    let items = page["items"].as_array().expect("items");
    assert_eq!(items.len(), count, "one operation for each thing that was done");
    let shown = &items[0];
    assert_eq!((&shown["correlation_id"], &shown["status"]), (&over["id"], &Value::from("completed")));
    assert_eq!((&shown["operation_type"], &shown["target_state"]), (&Value::from(verb), &Value::from(target)));
    let events = operation::events(&over);
    assert_eq!(events.first(), Some(&format!("instance.{verb}.start")));
    assert_eq!(events.last(), Some(&format!("instance.{verb}.end")));
    assert!(!events.iter().any(|e| e.ends_with(".error")), "{events:?}");
    let last = shown["events"].as_array().and_then(|list| list.last()).expect("events");
    assert_eq!(last["state"], target);
    let nirvana = cloud.client.get(&format!("/v1/operations/{id}")).expect("it answers").json();
    assert_eq!((&nirvana["kind"], &nirvana["status"]), (&Value::from("vm"), &Value::from("done")), "{nirvana}");
    assert_eq!(nirvana["resource_id"].as_str().map(|s| s.replace('-', "")), Some(cvm.replace('-', "")));
}

#[test]
fn an_app_from_deploy_to_delete() {
    let cloud = Cloud::real();
    let phala = Phala::new(&cloud);
    let logged_in =
        phala.try_run_logged_in(&["login", &cloud.client.key, "--url", &format!("{}/api/v1", cloud.client.base)]);
    assert!(logged_in.ok, "{}{}", logged_in.out, logged_in.err);
    assert!(phala.try_run_logged_in(&["whoami"]).ok, "what login stored is enough");
    for command in ["whoami", "status", "instance-types", "os-images"] {
        phala.run(&[command]);
    }
    assert!(phala.run(&["nodes", "list"]).contains("0.1.0"), "the node and its version");

    let compose = holdfast_e2e::hello_compose();
    let marker = "marker-5d1c";
    let greeting = format!("GREETING={marker}");
    let deployed = phala.json(&["deploy", "-c", compose.to_str().expect("a path"), "-n", NAME, "-e", &greeting, "-j"]);
    let cvm = text(&deployed["vm_uuid"]);
    assert_eq!(deployed["name"], NAME);
    ledger(&cloud, &cvm, "create", "running", 1);
    assert!(answer(&cloud, &cvm).contains(marker), "the value reached the app");

    let detail = phala.json(&["cvms", "get", NAME, "--json"]);
    assert_eq!(detail["status"], "running", "{detail}");
    assert!(phala.run(&["cvms", "list"]).contains(NAME));
    let containers = phala.run(&["ps", NAME]);
    assert!(containers.contains("web"), "{containers}");
    let container = container_name(&cloud, &cvm);
    let logs = until(Duration::from_secs(30), "the container's log has its first line", || {
        let logs = phala.run(&["logs", &container, "--cvm-id", NAME, "--stderr"]);
        Ok(logs.contains("listening on port 80").then_some(()))
    });
    logs.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(40)));
    let serial = phala.run(&["logs", "--serial", "--cvm-id", NAME]);
    assert!(!serial.trim().is_empty(), "the serial log says something");

    phala.run(&["cvms", "stop", NAME]);
    ledger(&cloud, &cvm, "power_off", "stopped", 2);
    assert_eq!(cloud.status(&cvm), "stopped");
    phala.run(&["cvms", "start", NAME]);
    ledger(&cloud, &cvm, "power_on", "running", 3);
    assert!(answer(&cloud, &cvm).contains(marker), "after a start");
    phala.run(&["cvms", "restart", NAME]);
    ledger(&cloud, &cvm, "restart", "running", 4);
    assert!(answer(&cloud, &cvm).contains(marker), "after a restart");
    let api = phala.run(&["api", &format!("/cvms/{NAME}/operations"), "-q", ".items[].operation_type"]);
    assert!(api.contains("restart") && api.contains("create"), "{api}");

    let url = cloud.client.app_urls(&cvm).expect("a detail").remove(0);
    phala.run(&["cvms", "delete", NAME, "-y"]);
    ledger(&cloud, &cvm, "delete", "deleted", 5);
    assert!(!phala.try_run(&["cvms", "get", NAME, "--json"]).ok, "it is gone");
    assert!(cloud.client.send("GET", &url, &[], None).is_err(), "nobody listens on {url} any more");
    leftovers::assert_none(&cloud, &cvm);
}

fn container_name(cloud: &Cloud, cvm: &str) -> String {
    let composition = cloud.client.get(&format!("/api/v1/cvms/{cvm}/composition")).expect("it answers").json();
    let containers = composition["containers"].as_array().expect("containers");
    let container = containers.iter().find(|c| c["state"] == "running").expect("a running container");
    text(&container["names"][0]).trim_start_matches('/').to_owned()
}

/// An app that cannot start leaves its CVM to look at, and says in which step it failed.
#[test]
fn an_app_that_fails_to_boot() {
    let cloud = Cloud::real();
    let compose = "services:\n  web:\n    image: no-such-image.invalid/none:latest\n    pull_policy: never\n";
    let cvm = cloud.client.deploy("broken", compose, &serde_json::json!({})).expect("accepted");
    let create = operation::newest(&cloud.client, &cvm).expect("an operation");
    let over = cloud.over(&text(&create["id"]), BOOT);
    assert_eq!(over["status"], "failed", "{over:#}");
    assert_eq!(cloud.status(&cvm), "error", "after the pivot nothing is undone");
    let last = operation::events(&over).pop().expect("events");
    assert!(last.ends_with(".error"), "{last}");
    let message = over["error"].to_string();
    assert!(!message.contains("/tmp/"), "no host path: {message}");
    let phala = Phala::new(&cloud);
    assert!(!phala.run(&["logs", "--serial", "--cvm-id", "broken"]).trim().is_empty(), "its logs are kept");
    cloud.deleted(&cvm);
    leftovers::assert_none(&cloud, &cvm);
}
