//! Further CVMs of an app: replicas of a certain one, and instances made like the newest one.

use std::sync::atomic::Ordering;

use axum::body::Body;
use holdfast_model::compose::sha256_hex;
use holdfast_model::hashid::{Prefix, encode};
use serde_json::{Value, json};

use crate::support::{NEWEST, Server, V_STRING_IDS, V2025, V2026, until};

const VERSIONS: [&str; 4] = [V2025, V2026, V_STRING_IDS, NEWEST];
const OTHER: &str = "services:\n  web:\n    image: other\n    ports: [\"8080:80\", \"9090:90\"]\n";

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

async fn detail(server: &Server, id: &str) -> Value {
    server.at(V2025).get(&format!("/cvms/{id}")).await.expect(200)
}

async fn newest_operation(server: &Server, id: &str) -> Value {
    let page = server.at(V2026).get(&format!("/cvms/{id}/operations")).await.expect(200);
    let path = format!("/holdfast/v1/operations/{}", text(&page["items"][0]["correlation_id"]));
    server.at(V2026).any("GET", &path, ("", "")).await.expect(200)
}

async fn update(server: &Server, id: &str, body: &Value) {
    server.at(V2026).patch(&format!("/cvms/{id}"), body).await.expect(202);
    server.until_status(id, "running").await;
}

#[tokio::test]
async fn a_replica_is_like_the_one_it_is_made_of_and_its_own() {
    let server = Server::start().await;
    let first = server.deploy_running("my-app").await;
    let (uuid, app) = (text(&first["vm_uuid"]).to_owned(), text(&first["app_id"]).to_owned());
    let settings = json!({ "vcpu": 2, "memory": 4096, "disk_size": 40, "public_logs": false,
        "encrypted_env": "ab".repeat(64), "allowed_envs": ["A"], "shutdown_timeout": 30, "allow_force_stop": true });
    update(&server, &uuid, &settings).await;
    let mut seen = vec![uuid.clone()];
    for version in VERSIONS {
        let paths = [format!("/cvms/{uuid}/replicas"), format!("/apps/{app}/cvms/{uuid}/replicas")];
        for (path, body) in paths.iter().zip(["", "null"]) {
            let vm = server.at(version).post_bytes(path, body.into()).await.expect(200);
            let new = text(&vm["vm_uuid"]).to_owned();
            assert_eq!(vm["id"].is_i64(), [V2025, V2026].contains(&version), "{version}");
            assert_eq!((text(&vm["status"]), text(&vm["app_id"])), ("creating", app.as_str()));
            assert!(!seen.contains(&new) && vm["instance_id"] != first["instance_id"]);
            server.until_status(&new, "running").await;
            let operation = newest_operation(&server, &new).await;
            assert_eq!((text(&operation["operation_type"]), text(&operation["status"])), ("replicate", "done"));
            let (like, cvm) = (detail(&server, &uuid).await, detail(&server, &new).await);
            for field in ["name", "vcpu", "memory", "disk_size", "base_image", "public_logs", "instance_type"] {
                assert_eq!(cvm[field], like[field], "{field}");
            }
            assert_ne!(cvm["public_urls"], like["public_urls"], "on ports of its own");
            seen.push(new);
        }
    }
    let tables = server.tables().await;
    let env = "ab".repeat(64);
    let vms = tables.lines().filter(|line| line.starts_with("vm:") && line.contains(&env));
    assert_eq!(vms.count(), seen.len(), "each has the env");
    // Its settings came with it.
    server.at(V2026).post_bytes(&format!("/cvms/{}/shutdown", seen[1]), Vec::new()).await.expect(200);
    server.until_status(&seen[1], "stopped").await;
    assert!(server.tables().await.contains(r#"{"mode":"graceful","grace_s":30}"#));
    // The app id names several by now.
    let refused = server.at(V2026).post_bytes(&format!("/cvms/app_{app}/replicas"), Vec::new()).await.expect(409);
    assert_eq!(refused["error_code"], "ERR-03-010");
    let page = server.at(V2026).any("GET", "/holdfast/v1/audit-logs?action=vm.replicate", ("", "")).await.expect(200);
    assert_eq!(page["items"].as_array().map(Vec::len), Some(8));
}

#[tokio::test]
async fn a_replica_can_be_elsewhere_and_run_something_else() {
    let server = Server::start().await;
    let first = server.deploy_running("my-app").await;
    let compose = json!({ "docker_compose_file": OTHER, "name": "" });
    let provisioned = server.at(V2026).post("/cvms/my-app/compose_file/provision", &compose).await.expect(200);
    let path = format!("/cvms/{}/replicas", text(&first["vm_uuid"]));
    let env = "cd".repeat(64);
    for node in ["node_id", "teepod_id"] {
        let body = json!({ node: 1.0, "compose_hash": provisioned["compose_hash"], "encrypted_env": env });
        let vm = server.at(V2026).post(&path, &body).await.expect(200);
        let new = text(&vm["vm_uuid"]).to_owned();
        server.until_status(&new, "running").await;
        let raw = server.at(V2026).get(&format!("/cvms/{new}/compose_file?raw")).await;
        assert_eq!(sha256_hex(&raw.bytes), text(&provisioned["compose_hash"]));
        assert_eq!(detail(&server, &new).await["public_urls"].as_array().map(Vec::len), Some(2));
        let operation = newest_operation(&server, &new).await.to_string();
        assert!(!operation.contains(&env), "{operation}");
        let missing = server.at(V2026).post(&path, &json!({ node: 99 })).await.expect(400);
        assert_eq!(missing["error_code"], "ERR-01-001");
    }
    for (body, status) in [
        (json!({ "compose_hash": "00".repeat(32) }), 422),
        (json!({ "encrypted_env": "zz" }), 422),
        (json!({ "node_id": "one" }), 422),
    ] {
        assert_eq!(server.at(V2026).post(&path, &body).await.status, status, "{body}");
    }
    let request = server.at(V2026).request("POST", &path).header("x-prepare-only", "true");
    server.send(request.body(Body::empty()).expect("a request")).await.expect(400);
    server.sql("UPDATE node SET images = '[]'").await;
    let refused = server.at(V2026).post_bytes(&path, Vec::new()).await.expect(400);
    assert_eq!(refused["error_code"], "ERR-03-006");
}

#[tokio::test]
async fn what_cannot_be_replicated() {
    let server = Server::start().await;
    let first = server.deploy_running("my-app").await;
    let other = server.deploy_running("other-app").await;
    let (uuid, app) = (text(&first["vm_uuid"]), text(&first["app_id"]));
    let nothing = "0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e";
    let paths = [
        format!("/cvms/{nothing}/replicas"),
        format!("/apps/{app}/cvms/{nothing}/replicas"),
        format!("/apps/{app}/cvms/{}/replicas", text(&other["vm_uuid"])),
    ];
    for path in paths {
        let refused = server.at(V2026).post_bytes(&path, Vec::new()).await.expect(404);
        assert_eq!(refused["error_code"], "ERR-03-008", "{path}");
    }
    // What it runs is being changed: like which of the two?
    server.held.store(true, Ordering::Relaxed);
    let body = json!({ "docker_compose_file": OTHER });
    server.at(V2026).patch(&format!("/cvms/{uuid}"), &body).await.expect(202);
    for path in [format!("/cvms/{uuid}/replicas"), format!("/apps/{app}/instances")] {
        let refused = server.at(V2026).post_bytes(&path, Vec::new()).await.expect(409);
        assert_eq!(refused["error_code"], "ERR-03-009", "{path}");
    }
    let said = json!({ "compose_hash": hash(&server).await });
    server.at(V2026).post(&format!("/cvms/{uuid}/replicas"), &said).await.expect(200);
    server.held.store(false, Ordering::Relaxed);
    server.until_status(uuid, "running").await;
    server.held.store(true, Ordering::Relaxed);
    assert_eq!(server.at(V2026).delete(&format!("/cvms/{uuid}")).await.status, 204);
    until("it is on its way out", async || server.tables().await.contains("absent")).await;
    server.at(V2026).post_bytes(&format!("/cvms/{uuid}/replicas"), Vec::new()).await.expect(409);
    server.held.store(false, Ordering::Relaxed);
    until("it is gone", async || server.at(V2026).get(&format!("/cvms/{uuid}")).await.status == 404).await;
    let refused = server.at(V2026).post_bytes(&format!("/cvms/{uuid}/replicas"), Vec::new()).await.expect(404);
    assert_eq!(refused["error_code"], "ERR-03-008");
}

/// The hash of what the other app runs: it was provisioned in this workspace.
async fn hash(server: &Server) -> String {
    let raw = server.at(V2026).get("/cvms/other-app/compose_file?raw").await;
    sha256_hex(&raw.bytes)
}

#[tokio::test]
async fn a_replica_is_made_once_per_key_and_not_by_a_dry_run() {
    let server = Server::start().await;
    let first = server.deploy_running("my-app").await;
    let path = format!("/cvms/{}/replicas", text(&first["vm_uuid"]));
    let before = server.tables().await;
    let dry = server.at(V2026).post_bytes(&format!("{path}?dry_run=true"), Vec::new()).await.expect(200);
    assert_eq!((&dry["operation_type"], &dry["placement"]["node"]), (&json!("replicate"), &json!("test-node")));
    let rows = |tables: &str| tables.lines().filter(|line| line.starts_with("vm")).count();
    assert_eq!(rows(&server.tables().await), rows(&before));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let request = server.at(V2026).request("POST", &path).header("idempotency-key", "r1");
        answers.push(server.send(request.body(Body::empty()).expect("a request")).await.expect(200));
    }
    assert_eq!(answers[0], answers[1]);
    // The server ended before it kept the answer.
    server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
    let request = server.at(V2026).request("POST", &path).header("idempotency-key", "r1");
    let again = server.send(request.body(Body::empty()).expect("a request")).await.expect(200);
    assert_eq!(again["vm_uuid"], answers[0]["vm_uuid"]);
    let list = server.at(V2026).get(&format!("/apps/{}/cvms", text(&first["app_id"]))).await.expect(200);
    assert_eq!(list.as_array().map(Vec::len), Some(2));
    // A create cannot be repeated, and a replica is one.
    server.until_status(text(&again["vm_uuid"]), "running").await;
    server.deaf.store(false, Ordering::Relaxed);
    let id = newest_operation(&server, text(&again["vm_uuid"])).await["id"].clone();
    server.sql("UPDATE operation SET status = 'failed' WHERE operation_type = 'replicate'").await;
    let retry = format!("/holdfast/v1/operations/{}/retry", text(&id));
    let refused = server.at(V2026).any("POST", &retry, ("", "")).await.expect(409);
    assert_eq!(refused["error"]["code"], "HF-0131");
}

#[tokio::test]
async fn an_instance_is_made_like_the_newest_cvm_of_its_app() {
    let server = Server::start().await;
    let first = server.deploy_running("my-app").await;
    let app = text(&first["app_id"]).to_owned();
    update(&server, text(&first["vm_uuid"]), &json!({ "vcpu": 2 })).await;
    let prj = detail(&server, "my-app").await["project_id"].clone();
    let mut newest = text(&first["vm_uuid"]).to_owned();
    for (version, form) in VERSIONS.iter().zip([&app, &format!("app_{app}"), &format!("0x{app}"), text(&prj)]) {
        let path = format!("/apps/{form}/instances");
        let vm = server.at(version).post_bytes(&path, Vec::new()).await.expect(200);
        let id = match vm["id"].as_i64() {
            Some(key) => encode(Prefix::Cvm, key),
            None => text(&vm["id"]).to_owned(),
        };
        assert_eq!(vm["id"].is_i64(), [V2025, V2026].contains(version), "{version}");
        assert_eq!((&vm["status"], &vm["vcpu"]), (&json!("creating"), &json!(2)));
        newest = text(&vm["vm_uuid"]).to_owned();
        server.until_status(&newest, "running").await;
        assert_eq!(detail(&server, &id).await["vm_uuid"], newest.as_str());
        assert_eq!(newest_operation(&server, &newest).await["operation_type"], "create");
    }
    // What is changed of the newest one is in the next one.
    update(&server, &newest, &json!({ "memory": 4096, "docker_compose_file": OTHER })).await;
    let body = json!({ "teepod_id": 1, "pre_launch_script": "echo further", "encrypted_env": "ef".repeat(64) });
    let vm = server.at(V2026).post(&format!("/apps/{app}/instances"), &body).await.expect(200);
    let uuid = text(&vm["vm_uuid"]).to_owned();
    server.until_status(&uuid, "running").await;
    assert_eq!(vm["memory"], 4096);
    assert_eq!(server.at(V2026).get(&format!("/cvms/{uuid}/pre-launch-script")).await.text(), "echo further");
    assert_eq!(server.at(V2026).get(&format!("/cvms/{uuid}/docker-compose.yml")).await.text(), OTHER);
    // Only itself was changed.
    assert_eq!(server.at(V2026).get(&format!("/cvms/{newest}/pre-launch-script")).await.text(), "");
    for (body, status) in [
        (json!({ "token": "x" }), 400),
        (json!({ "transaction_hash": "x" }), 400),
        (json!({ "teepod_id": 99 }), 400),
        (json!({ "docker_compose_file": "::" }), 400),
        (json!({ "compose_hash": "00".repeat(32) }), 422),
    ] {
        let answer = server.at(V2026).post(&format!("/apps/{app}/instances"), &body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
    assert_eq!(server.at(V2026).post_bytes("/apps/nothing/instances", Vec::new()).await.status, 404);
    let list = server.at(V2026).get(&format!("/apps/{app}/cvms")).await.expect(200);
    assert_eq!(list.as_array().map(Vec::len), Some(6));
}
