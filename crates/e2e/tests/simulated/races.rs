//! Fifty clients at once for what there is one of: the last slot of a quota, its last vCPUs, a name. On connections of
//! their own to the real server; exactly one wins, every time, and what it won is given back exactly once.

use std::process::{Command, Output};
use std::sync::Barrier;

use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON};
use holdfast_e2e::sdk::Sdk;
use holdfast_e2e::truth;
use holdfast_harness::client::{Answer, Client};
use holdfast_harness::until;
use serde_json::{Value, json};

const CLIENTS: usize = 50;
const ROUNDS: usize = 10;
const QUOTAS: &str = "/holdfast/v1/quotas/default";

fn limit(cloud: &Cloud, body: Value) -> Value {
    let headers = [("Content-Type", "application/json")];
    let answer = cloud.client.send("PATCH", QUOTAS, &headers, Some(body.to_string().into_bytes()));
    answer.and_then(Answer::ok).expect("the limit is set")
}

fn used(cloud: &Cloud, name: &str) -> i64 {
    let told = cloud.client.get(QUOTAS).and_then(Answer::ok).expect("the quota");
    told["quotas"][name]["used"].as_i64().expect("a number")
}

fn until_used(cloud: &Cloud, name: &str, amount: i64) {
    let reached = until(SOON, "the quota counts right", || Ok((used(cloud, name) == amount).then_some(())));
    reached.unwrap_or_else(|e| panic!("{name}: {} and not {amount}: {e}", used(cloud, name)));
}

/// Sends all of it at the same moment, each on a connection of its own that is open by then.
fn race<T: Send>(cloud: &Cloud, what: Vec<T>, send: impl Fn(&Client, T) -> Answer + Sync) -> Vec<Answer> {
    let start = Barrier::new(what.len());
    let (start, send) = (&start, &send);
    std::thread::scope(|scope| {
        let racers: Vec<_> = what
            .into_iter()
            .map(|mine| {
                let client = Client::new(cloud.client.base.clone(), cloud.client.key.clone());
                scope.spawn(move || {
                    client.get("/api/v1/auth/me").expect("a connection");
                    start.wait();
                    send(&client, mine)
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().expect("an answer")).collect()
    })
}

fn provisioned(cloud: &Cloud, name: &str, extra: &Value) -> Value {
    cloud.client.provision(name, COMPOSE, extra).and_then(Answer::ok).expect("provisioned")
}

/// The one that won; all others were refused with this code.
fn winner(answers: &[Answer], refusal: &str) -> Value {
    let won: Vec<&Answer> = answers.iter().filter(|answer| (200..300).contains(&answer.status)).collect();
    let texts = || answers.iter().map(|a| format!("{} {}", a.status, a.text)).collect::<Vec<_>>().join("\n");
    assert_eq!(won.len(), 1, "{}", texts());
    let lost = answers.iter().filter(|answer| !(200..300).contains(&answer.status));
    for answer in lost {
        assert_eq!(answer.json()["error_code"], refusal, "{}", texts());
    }
    won[0].json()
}

fn delete(cloud: &Cloud, cvm: &Value) {
    let id = cvm["vm_uuid"].as_str().expect("an id").to_owned();
    cloud.client.delete(&format!("/api/v1/cvms/{id}")).expect("an answer");
    let gone =
        until(
            SOON,
            "it is gone",
            || Ok((cloud.client.get(&format!("/api/v1/cvms/{id}"))?.status == 404).then_some(())),
        );
    gone.expect("deleted");
}

/// Until its create is over.
fn settled(cloud: &Cloud, cvm: &Value) {
    let path = format!("/api/v1/cvms/{}", cvm["vm_uuid"].as_str().expect("an id"));
    let running = until(SOON, "it runs", || Ok((cloud.client.get(&path)?.json()["status"] == "running").then_some(())));
    running.expect("running");
}

#[test]
fn one_gets_the_last_slot() {
    let cloud = Cloud::simulated(1);
    for round in 0..ROUNDS {
        limit(&cloud, json!({ "vm_slots": null }));
        let apps = (0..CLIENTS).map(|n| provisioned(&cloud, &format!("slot-{round}-{n}"), &json!({}))).collect();
        limit(&cloud, json!({ "vm_slots": 1 }));
        let answers = race(&cloud, apps, |client, app: Value| client.commit(&app, None).expect("an answer"));
        let won = winner(&answers, "ERR-02-015");
        assert_eq!(used(&cloud, "vm_slots"), 1);
        settled(&cloud, &won);
        delete(&cloud, &won);
        until_used(&cloud, "vm_slots", 0);
    }
    truth::assert_consistent(&cloud);
}

#[test]
fn one_gets_the_last_vcpus_whether_it_makes_or_grows() {
    let cloud = Cloud::simulated(1);
    // Ten that could grow by three, beside forty that would be new with three.
    let small: Vec<String> =
        (0..10).map(|n| cloud.client.deploy(&format!("small-{n}"), COMPOSE, &json!({})).expect("deployed")).collect();
    for id in &small {
        settled(&cloud, &json!({ "vm_uuid": id }));
    }
    for round in 0..ROUNDS {
        limit(&cloud, json!({ "vcpu": null }));
        let size = json!({ "vcpu": 3, "memory": 1024 });
        let new = (0..CLIENTS - small.len()).map(|n| provisioned(&cloud, &format!("vcpu-{round}-{n}"), &size));
        let new: Vec<_> = new.map(|app| (app, None)).collect();
        let all = small.iter().map(|id| (Value::Null, Some(id.clone()))).chain(new).collect();
        limit(&cloud, json!({ "vcpu": 10 + 3 + 2 }));
        let answers = race(&cloud, all, |client, (app, grows): (Value, Option<String>)| match grows {
            Some(id) => {
                let headers = [("X-Phala-Version", "2026-01-21"), ("Content-Type", "application/json")];
                let path = format!("/api/v1/cvms/{id}/resources");
                client.send("PATCH", &path, &headers, Some(br#"{"vcpu":4}"#.to_vec())).expect("an answer")
            }
            None => client.commit(&app, None).expect("an answer"),
        });
        let won = winner(&answers, "ERR-02-015");
        assert_eq!(used(&cloud, "vcpu"), 13);
        if won["vm_uuid"].is_string() && won["correlation_id"].is_null() {
            settled(&cloud, &won);
            delete(&cloud, &won);
        } else {
            let grown = answers.iter().position(|answer| answer.status < 300).expect("it won");
            settled(&cloud, &json!({ "vm_uuid": small[grown] }));
            let path = format!("/api/v1/cvms/{}/resources", small[grown]);
            let headers = [("X-Phala-Version", "2026-01-21"), ("Content-Type", "application/json")];
            let shrunk = until(SOON, "it may be made smaller", || {
                let answer = cloud.client.send("PATCH", &path, &headers, Some(br#"{"vcpu":1}"#.to_vec()))?;
                Ok((answer.status < 300).then_some(()))
            });
            shrunk.expect("it was made smaller");
        }
        until_used(&cloud, "vcpu", 10);
        for id in &small {
            settled(&cloud, &json!({ "vm_uuid": id }));
        }
    }
    truth::assert_consistent(&cloud);
}

#[test]
fn one_gets_the_name() {
    let cloud = Cloud::simulated(1);
    for round in 0..ROUNDS {
        let name = format!("wanted-{round}");
        let apps: Vec<Value> = (0..CLIENTS).map(|_| provisioned(&cloud, &name, &json!({}))).collect();
        let answers = race(&cloud, apps, |client, app: Value| client.commit(&app, None).expect("an answer"));
        winner(&answers, "ERR-01-004");
    }
    assert_eq!(used(&cloud, "vm_slots"), i64::try_from(ROUNDS).expect("few"));
}

/// An operator sets it with the command line, and the official SDK reads it.
#[test]
fn quotas_from_the_command_line_to_the_sdk() {
    let cloud = Cloud::simulated(1);
    let admin = |args: &[&str]| {
        let mut command = Command::new(holdfast_e2e::binary());
        command.args(["admin", "quotas"]).args(args).arg("--data-dir").arg(cloud.data_dir());
        let Output { status, stdout, stderr } = command.output().expect("it runs");
        // However wide its columns are.
        let told = String::from_utf8_lossy(&stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        (status.code(), told, String::from_utf8_lossy(&stderr).into_owned())
    };
    let (code, shown, _) = admin(&["show", "default"]);
    assert!(code == Some(0) && shown.contains("vm_slots none 0 unlimited"), "{shown}");
    let (code, set, err) = admin(&["set", "default", "--vm-slots", "2", "--memory-mb", "4096", "--json"]);
    let set: Value = serde_json::from_str(&set).unwrap_or_else(|e| panic!("{code:?} {e}: {set}{err}"));
    assert_eq!(set["quotas"]["memory_mb"], json!({ "limit": 4096, "used": 0, "remaining": 4096 }));
    cloud.deployed("first-app", SOON);
    let (_, shown, _) = admin(&["show", "default"]);
    assert!(shown.contains("vm_slots 2 1 1") && shown.contains("memory_mb 4096 2048 2048"), "{shown}");

    let quotas = cloud.client.get("/api/v1/workspaces/default/quotas").and_then(Answer::ok).expect("the quotas");
    assert_eq!(quotas["quotas"]["vm_slots"], json!({ "limit": 2, "remaining": 1 }), "{quotas}");
    assert_eq!(quotas["quotas"]["vcpu"], json!({ "limit": -1, "remaining": -1 }), "{quotas}");
    for version in ["2025-10-28", "2026-01-21"] {
        let nodes = Sdk::new(&cloud, version).call("getAvailableNodes", json!({}));
        assert_eq!((&nodes["capacity"]["max_instances"], &nodes["capacity"]["max_memory"]), (&json!(2), &json!(4096)));
    }

    let (code, _, _) = admin(&["set", "default", "--vm-slots", "none"]);
    assert_eq!(code, Some(0));
    let (code, cleared, _) = admin(&["clear", "default"]);
    assert!(code == Some(0) && !cleared.contains("4096"), "{cleared}");
    for (args, exit, says) in [
        (&["set", "default"][..], 2, "at least one"),
        (&["set", "default", "--vcpu", "many"], 2, "neither a number nor none"),
        (&["show", "../nodes"], 2, "no slug"),
        (&["show", "nobody"], 1, "HF-0109"),
    ] {
        let (code, out, err) = admin(args);
        assert!(code == Some(exit) && err.contains(says) && out.is_empty(), "{args:?}: {code:?} {out}{err}");
    }
}
