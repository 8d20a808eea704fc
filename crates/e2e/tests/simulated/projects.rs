//! Projects from the operator's command line, and the official command line with a key that is limited to one.

use std::process::Command;

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON, text};
use holdfast_e2e::truth::assert_consistent;
use holdfast_harness::client::provision_body;
use holdfast_harness::operation;
use serde_json::{Value, json};

/// `holdfast admin`, whose answer is lines of JSON; `Err` with what it said when it refused.
fn admin(cloud: &Cloud, args: &[&str]) -> Result<Vec<Value>, String> {
    let mut command = Command::new(holdfast_e2e::binary());
    for name in ["HOLDFAST_URL", "HOLDFAST_API_KEY", "HOLDFAST_CONFIG"] {
        command.env_remove(name);
    }
    command.arg("admin").args(args).args(["--json", "--data-dir"]).arg(cloud.data_dir());
    let output = command.output().expect("the binary runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let told = String::from_utf8(output.stdout).expect("text");
    Ok(told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

/// Waits until the CVM's newest operation is done.
fn done(cloud: &Cloud, cvm: &str) {
    let newest = operation::newest(&cloud.client, cvm).expect("an operation");
    cloud.done(&text(&newest["id"]), SOON);
}

#[test]
fn a_pipeline_has_a_key_for_its_project() {
    let cloud = Cloud::simulated(1);
    let everybodys = cloud.deployed("main-app", SOON);
    let made = admin(&cloud, &["projects", "create", "pipeline"]).expect("a project").remove(0);
    let taken = admin(&cloud, &["projects", "create", "pipeline"]).expect_err("it is taken");
    assert!(taken.contains("HF-0431"), "{taken}");
    let token =
        admin(&cloud, &["tokens", "create", "--name", "ci", "--project", "pipeline"]).expect("a token").remove(0);
    let unknown = admin(&cloud, &["tokens", "create", "--name", "ci", "--project", "nowhere"]).expect_err("unknown");
    assert!(unknown.contains("was not found"), "{unknown}");

    // The official client knows nothing of projects, and needs to know nothing.
    let phala = Phala::with_key(&cloud, &text(&token["token"]));
    let file = cloud.data_dir().join("docker-compose.yml");
    std::fs::write(&file, COMPOSE).expect("written");
    let deployed = phala.json(&["deploy", "-c", &file.display().to_string(), "-n", "ci-app", "--json"]);
    let own = text(&deployed["vm_uuid"]);
    done(&cloud, &own);
    let listed = phala.run(&["cvms", "list", "--json"]);
    assert!(listed.contains("ci-app") && !listed.contains("main-app"), "{listed}");
    for args in [["cvms", "get", "main-app"], ["cvms", "get", &everybodys], ["cvms", "stop", "main-app"]] {
        let said = phala.try_run(&args);
        assert!(!said.ok, "{args:?}: {}{}", said.out, said.err);
    }
    assert!(phala.run(&["whoami"]).contains("admin"));
    assert_eq!(cloud.status(&everybodys), "running");

    let projects = admin(&cloud, &["projects", "list"]).expect("a list");
    let counts: Vec<_> = projects.iter().map(|p| (text(&p["name"]), p["cvms"].clone())).collect();
    assert_eq!(counts, [("default".to_owned(), json!(1)), ("pipeline".to_owned(), json!(1))]);
    // A header says it where the key leaves it open.
    let headers = [("X-Holdfast-Project", "pipeline"), ("Content-Type", "application/json")];
    let provision = provision_body("sent-app", COMPOSE, &json!({}));
    let body = Some(provision.to_string().into_bytes());
    let ready = cloud.client.send("POST", "/api/v1/cvms/provision", &headers, body).expect("it answers").ok();
    let sent = cloud.client.commit(&ready.expect("it is ready"), None).expect("it answers").ok().expect("a CVM");
    let sent = text(&sent["vm_uuid"]);
    done(&cloud, &sent);
    assert!(phala.run(&["cvms", "list", "--json"]).contains("sent-app"));

    let renamed = admin(&cloud, &["projects", "rename", "pipeline", "ci"]).expect("renamed").remove(0);
    assert_eq!((&renamed["id"], &renamed["name"]), (&made["id"], &json!("ci")));
    let in_use = admin(&cloud, &["projects", "delete", "ci"]).expect_err("CVMs live in it");
    assert!(in_use.contains("HF-0433"), "{in_use}");
    cloud.deleted(&own);
    cloud.deleted(&sent);
    admin(&cloud, &["projects", "delete", "ci"]).expect("it is empty");
    assert_eq!(admin(&cloud, &["projects", "list", "--workspace", "default"]).expect("a list").len(), 1);
    assert_consistent(&cloud);
}
