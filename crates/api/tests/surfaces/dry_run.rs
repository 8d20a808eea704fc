//! `?dry_run=true`: says what the real request then does, refuses what it refuses, and writes nothing at all.

use std::sync::atomic::Ordering;

use axum::body::Body;
use serde_json::{Value, json};

use crate::support::{Answer, COMPOSE, Server, V2025, V2026, provision, until};

const NONE: (&str, &str) = ("", "");

async fn send(server: &Server, method: &str, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    // A key that a dry run must not take.
    let request = server.at(V2026).request(method, "/").uri(path).header("idempotency-key", "dry");
    server.send(request.body(body).expect("a request")).await
}

/// Asks what the request would do, and that it did nothing.
async fn rehearse(server: &Server, method: &str, path: &str, body: &Value) -> Answer {
    let before = server.tables().await;
    let bell = server.control.store.desired_revision(1).await.expect("a revision");
    let answer = send(server, method, &format!("{path}?dry_run=true"), body).await;
    assert_eq!(before, server.tables().await, "{method} {path} wrote something");
    assert_eq!(bell, server.control.store.desired_revision(1).await.expect("a revision"));
    answer
}

async fn newest(server: &Server) -> Value {
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?limit=1", NONE).await.expect(200);
    page["items"][0].clone()
}

async fn free(server: &Server) -> Value {
    server.at(V2026).any("GET", "/holdfast/v1/nodes", NONE).await.expect(200)["items"][0]["free"].clone()
}

/// Does it in earnest, and compares: the operation's type, diff and steps, and what the node has left.
async fn holds(server: &Server, preview: &Value, (method, path, body): (&str, &str, &Value)) {
    assert_eq!((&preview["dry_run"], &preview["quota"]), (&json!(true), &json!("unlimited")), "{preview}");
    let answer = send(server, method, &format!("{path}?dry_run=false"), body).await;
    assert!(answer.status.is_success(), "{method} {path}: {}", answer.text());
    until("it is done", async || newest(server).await["status"] == "done").await;
    let done = newest(server).await;
    assert_eq!(preview["operation_type"], done["operation_type"]);
    assert_eq!(preview["changes"], done["changes"], "{method} {path}");
    let names =
        |of: &Value| of["steps"].as_array().expect("steps").iter().map(|s| s["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(preview), names(&done));
    assert_eq!(preview["placement"]["free_after"], free(server).await, "{method} {path}");
    assert_eq!(preview["placement"]["node"], "test-node");
    server.sql("DELETE FROM idempotency_key").await;
}

#[tokio::test]
async fn a_preview_is_what_then_happens() {
    let server = Server::start().await;
    let wanted = provision("my-app");
    let first = rehearse(&server, "POST", "/api/v1/cvms/provision", &wanted).await.expect(200);
    assert_eq!((&first["operation_type"], &first["steps"]), (&Value::Null, &json!([])), "{first}");
    assert_eq!(first["placement"]["node"], "test-node");

    let provisioned = server.at(V2025).post("/cvms/provision", &wanted).await.expect(200);
    let commit = json!({ "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"] });
    let create = rehearse(&server, "POST", "/api/v1/cvms", &commit).await.expect(200);
    assert_eq!((&create["operation_type"], &create["pivot"]), (&json!("create"), &json!("start")), "{create}");
    assert_eq!(create["steps"][0], json!({ "name": "reserve", "deadline_s": null, "undone_on_failure": true }));
    assert_eq!(create["steps"][4], json!({ "name": "boot", "deadline_s": 300, "undone_on_failure": false }));
    assert_eq!(create["changes"]["ports"]["to"].as_array().map(Vec::len), Some(1), "{create}");
    assert_eq!(create["placement"]["free_after"], first["placement"]["free_after"]);
    holds(&server, &create, ("POST", "/api/v1/cvms", &commit)).await;
    // Repeating it would accept nothing.
    let again = rehearse(&server, "POST", "/api/v1/cvms", &commit).await.expect(200);
    assert_eq!((&again["operation_type"], &again["changes"]), (&Value::Null, &json!({})));

    let id = newest(&server).await["resource"]["id"].as_str().expect("an id").to_owned();
    let cvm = format!("/api/v1/cvms/{id}");
    let vm = format!("/v1/compute/vms/{id}");
    for (method, path, body) in [
        ("POST", format!("{cvm}/restart"), json!({ "force": true })),
        ("POST", format!("{vm}/restart"), Value::Null),
        ("PATCH", format!("{cvm}/resources"), json!({ "vcpu": 2, "memory": 4096 })),
        ("POST", format!("{cvm}/stop"), Value::Null),
        ("POST", format!("{cvm}/start"), Value::Null),
        ("DELETE", cvm.clone(), Value::Null),
    ] {
        let preview = rehearse(&server, method, &path, &body).await.expect(200);
        holds(&server, &preview, (method, &path, &body)).await;
    }
}

#[tokio::test]
async fn every_update_has_one_that_writes_nothing() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    let cvm = format!("/api/v1/cvms/{}", vm["vm_uuid"].as_str().expect("a UUID"));
    let compose = COMPOSE.replace("hello", "hello:2");
    for (method, rest, body, kind) in [
        ("PATCH", "", json!({ "docker_compose_file": compose, "vcpu": 2 }), "update"),
        ("PATCH", "/resources", json!({ "disk_size": 60 }), "resize"),
        ("PATCH", "/name", json!({ "name": "other-name" }), "rename"),
        ("PATCH", "/listed", json!({ "listed": true }), "visibility_update"),
    ] {
        let preview = rehearse(&server, method, &format!("{cvm}{rest}"), &body).await.expect(200);
        assert_eq!(preview["operation_type"], kind, "{preview}");
        assert!(preview["changes"].as_object().is_some_and(|changes| !changes.is_empty()), "{preview}");
    }
}

#[tokio::test]
async fn what_would_be_refused_is_refused_alike() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    for (method, path, body) in [
        ("POST", "/api/v1/cvms/my-app/start", Value::Null),
        ("POST", "/api/v1/cvms/nobody/stop", Value::Null),
        ("DELETE", "/api/v1/cvms/nobody", Value::Null),
        ("DELETE", "/v1/compute/vms/nobody", Value::Null),
        ("POST", "/api/v1/cvms", json!({ "app_id": "ab".repeat(20), "compose_hash": "cd".repeat(32) })),
        ("POST", "/api/v1/cvms/provision", json!({ "name": "x", "compose_file": {} })),
    ] {
        let dry = rehearse(&server, method, path, &body).await;
        let real = send(&server, method, path, &body).await;
        assert_eq!((dry.status, dry.text()), (real.status, real.text()), "{method} {path}");
        assert!(dry.status.is_client_error());
    }
    // Busy is refused on one surface and waits on the other, which then says for whom.
    server.held.store(true, Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/my-app/stop", Vec::new()).await.expect(200);
    until("the stop has begun", async || newest(&server).await["status"] == "running").await;
    let stop = newest(&server).await;
    assert_eq!(rehearse(&server, "DELETE", "/api/v1/cvms/my-app", &Value::Null).await.status, 409);
    let path = format!("/v1/compute/vms/{}", stop["resource"]["id"].as_str().expect("an id"));
    let waits = rehearse(&server, "DELETE", &path, &Value::Null).await.expect(200);
    assert_eq!((&waits["would_wait_for"], &waits["operation_type"]), (&stop["id"], &json!("delete")));
}

#[tokio::test]
async fn a_route_without_one_refuses_instead_of_doing_it() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let operation = newest(&server).await;
    let cancel = format!("/holdfast/v1/operations/{}/cancel", operation["id"].as_str().expect("an id"));
    for (method, path) in [
        ("POST", cancel.as_str()),
        ("POST", "/holdfast/v1/node-tokens"),
        ("DELETE", "/holdfast/v1/node-tokens/ntk_x"),
        ("POST", "/api/v1/cvms/my-app/operations/cancel"),
        ("POST", "/api/v1/cvms/my-app/compose_file/provision"),
    ] {
        let answer = rehearse(&server, method, path, &json!({ "name": "x", "compose_file": {} })).await;
        assert_eq!(answer.status, 400, "{method} {path}: {}", answer.text());
        assert!(answer.text().contains("dry_run"), "{method} {path}: {}", answer.text());
    }
    // A reader's parameter means nothing.
    assert_eq!(server.at(V2026).get("/cvms/my-app?dry_run=true").await.expect(200)["status"], "running");
}

#[tokio::test]
async fn every_mutation_of_the_documents_has_a_dry_run_or_refuses_it() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    for (surface, document) in holdfast_api::documents() {
        let document = serde_json::to_value(&document).expect("a document");
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("an item") {
                let only_reads = ["/api/v1/status/batch", "/api/v1/workspaces/check-slug"].contains(&path.as_str());
                if method == "get" || only_reads {
                    continue;
                }
                let named = operation["parameters"].as_array().into_iter().flatten().any(|p| p["name"] == "dry_run");
                let concrete = path.replace("{cvm_id}", "my-app").replace("{id}", "x").replace("{vm_id}", "x");
                let answer = rehearse(&server, &method.to_uppercase(), &concrete, &json!({})).await;
                let refused = answer.status == 400 && answer.text().contains("dry_run: this request");
                assert_ne!(named, refused, "{surface} {method} {path}: {} {}", answer.status, answer.text());
            }
        }
    }
}
