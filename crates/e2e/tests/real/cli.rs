//! The life of an app as its owner lives it: the official command line against a real VM.
//!
//! The one rule: after each command the ledger is compared with what was done, so that a command which merely looks right
//! does not pass.

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{BOOT, Cloud, SOON, text};
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
    let logs = until(SOON, "the container's log has its first line", || {
        let logs = phala.run(&["logs", &container, "--cvm-id", NAME, "--stderr"]);
        Ok(logs.contains("listening on port 80").then_some(()))
    });
    logs.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(40)));
    let serial = phala.run(&["logs", "--serial", "--cvm-id", NAME]);
    assert!(!serial.trim().is_empty(), "the serial log says something");

    read_logs(&cloud, &phala, &cvm, &container);
    crate::followers::all_get_every_line(&cloud, &cvm, &container);
    look(&phala);
    change(&cloud, &phala, &cvm);

    phala.run(&["cvms", "stop", NAME]);
    ledger(&cloud, &cvm, "power_off", "stopped", 5);
    assert_eq!(cloud.status(&cvm), "stopped");
    assert_eq!(phala.json(&["cvms", "start", NAME, "--json"])["cvm"]["status"], "starting");
    ledger(&cloud, &cvm, "power_on", "running", 6);
    assert!(answer(&cloud, &cvm).contains("third"), "after a start");
    phala.run(&["cvms", "restart", NAME]);
    ledger(&cloud, &cvm, "restart", "running", 7);
    assert!(answer(&cloud, &cvm).contains("third"), "after a restart");
    copy(&cloud, &phala, &cvm);
    let api = phala.run(&["api", &format!("/cvms/{NAME}/operations"), "-q", ".items[].operation_type"]);
    assert!(api.contains("restart") && api.contains("create"), "{api}");

    let url = cloud.client.app_urls(&cvm).expect("a detail").remove(0);
    phala.run(&["cvms", "delete", NAME, "-y"]);
    ledger(&cloud, &cvm, "delete", "deleted", 8);
    assert!(!phala.try_run(&["cvms", "get", NAME, "--json"]).ok, "it is gone");
    assert!(cloud.client.send("GET", &url, &[], None).is_err(), "nobody listens on {url} any more");
    leftovers::assert_none(&cloud, &cvm);
}

/// Logs with every option that chooses what of them is shown, and followed.
fn read_logs(cloud: &Cloud, phala: &Phala, cvm: &str, container: &str) {
    // The app tells of requests on its standard error.
    let logs = |options: &[&str]| {
        let said = phala.try_run(&[&["logs", container, "--cvm-id", NAME, "--stderr"], options].concat());
        assert!(said.ok, "{options:?}: {}{}", said.out, said.err);
        said.out + &said.err
    };
    assert_eq!(logs(&["-n", "1"]).lines().count(), 1);
    let stamped = logs(&["-t", "-n", "1"]);
    assert!(stamped.starts_with("20") && stamped.contains("T"), "{stamped}");
    assert!(logs(&["--since", "1h"]).contains("listening"));
    assert!(!logs(&["--until", "2020-01-01T00:00:00Z"]).contains("listening"));
    let told = phala.json(&["logs", container, "--cvm-id", NAME, "--json"]);
    assert!(told["logs"].as_str().is_some_and(|logs| logs.contains("listening")), "{told}");
    for channel in ["--serial", "--cvm-stdout", "--cvm-stderr"] {
        assert!(phala.json(&["logs", channel, "--cvm-id", NAME, "-n", "5", "--json"])["logs"].is_string(), "{channel}");
    }
    let mut serial = phala.follow(&["logs", "--serial", "-f", "--cvm-id", NAME]);
    let mut web = phala.follow(&["logs", container, "-f", "--stderr", "--cvm-id", NAME]);
    web.wait_for("listening on port 80");
    // The app logs each request: what comes after the beginning comes as well.
    let before = web.told().matches("response:200").count();
    answer(cloud, cvm);
    let more = until(SOON, "the request is in the followed log", || {
        Ok((web.told().matches("response:200").count() > before).then_some(()))
    });
    more.unwrap_or_else(|e| panic!("{e}: {}", web.told()));
    serial.wait_for("\n");
}

/// What the command line shows of a CVM, for people and as JSON.
fn look(phala: &Phala) {
    assert!(phala.run(&["cvms", "get", NAME]).contains("running"));
    let containers = phala.json(&["ps", NAME, "--json"])["containers"].clone();
    assert_eq!(containers[0]["state"], "running", "{containers}");
    assert!(phala.run(&["runtime-config", NAME]).contains("SSH Keys"));
    assert!(phala.json(&["runtime-config", NAME, "--json"])["ssh_authorized_keys"].is_array());
    // Not an error, and not a quote either.
    phala.run(&["cvms", "attestation", NAME]);
    let attested = phala.json(&["cvms", "attestation", NAME, "--json"]);
    assert!(attested["error"].is_string() && attested["tcb_info"].is_null(), "{attested}");
    let stats = phala.json(&["api", &format!("/cvms/{NAME}/stats")]);
    let memory = &stats["sysinfo"]["total_memory"];
    assert!(memory.as_u64().is_some_and(|bytes| bytes > 1 << 30), "the guest tells its memory: {stats}");
    let network = phala.json(&["api", &format!("/cvms/{NAME}/network")]);
    assert_eq!(network["is_online"], true, "{network}");
}

/// Values, compose file and size of a running app, each of which arrives in it.
fn change(cloud: &Cloud, phala: &Phala, cvm: &str) {
    let shows = |text: &str| {
        let shown =
            until(BOOT, &format!("the app shows {text}"), || Ok(answer(cloud, cvm).contains(text).then_some(())));
        shown.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(40)));
    };
    let sealed = phala.run(&["envs", "encrypt", NAME, "-e", "GREETING=second", "-n"]);
    phala.run(&["envs", "update", NAME, "--encrypted-env", &sealed]);
    ledger(cloud, cvm, "env_update", "running", 2);
    shows("second");

    let hello = std::fs::read_to_string(holdfast_e2e::hello_compose()).expect("the sample app is there");
    let file = cloud.folder.path().join("docker-compose.yml");
    std::fs::write(&file, format!("{hello}    labels:\n      revision: two\n")).expect("a compose file");
    let file = file.to_str().expect("a path");
    let said = phala.try_run(&["deploy", "--cvm-id", NAME, "-c", file, "-e", "GREETING=third", "--wait"]);
    assert!(said.ok && (said.out + &said.err).contains("CVM is ready"));
    let newest = operation::newest(&cloud.client, cvm).expect("an operation");
    assert_eq!(newest["status"], "done", "--wait came back before the update was over: {newest:#}");
    ledger(cloud, cvm, "compose_update", "running", 3);
    shows("third");

    let said = phala.json(&["cvms", "resize", NAME, "--vcpu", "2", "-y", "--json"]);
    assert_eq!((&said["success"], &said["vcpu"]), (&Value::from(true), &Value::from(2)), "{said}");
    ledger(cloud, cvm, "resize", "running", 4);
    assert_eq!(phala.json(&["cvms", "get", NAME, "--json"])["resource"]["vcpu"], 2);
    shows("third");
    let stats = phala.json(&["api", &format!("/cvms/{NAME}/stats")]);
    assert_eq!(stats["sysinfo"]["num_cpus"], 2, "the guest has what it was given: {stats}");
}

/// Another CVM of the app, with a VM and a disk of its own.
fn copy(cloud: &Cloud, phala: &Phala, cvm: &str) {
    let said = phala.json(&["cvms", "replicate", cvm, "--json"]);
    let replica = text(&said["vm_uuid"]);
    let made = operation::newest(&cloud.client, &replica).expect("an operation");
    cloud.done(&text(&made["id"]), BOOT);
    assert!(answer(cloud, &replica).contains("third"), "it has the app's values");
    let app_id = text(&said["app_id"]);
    let shown = phala.run(&["instances", "ls", "--app-id", &app_id]);
    assert_eq!(shown.matches("running").count(), 2, "{shown}");
    let removed = phala.json(&["instances", "rm", &replica, "-y", "--json"]);
    assert!(removed.to_string().contains("\"deleted\":true"), "{removed}");
    let removal = operation::newest(&cloud.client, &replica).expect("an operation");
    cloud.done(&text(&removal["id"]), BOOT);
    assert!(answer(cloud, cvm).contains("third"), "the other one is as it was");
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
