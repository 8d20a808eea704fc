//! Operations that wait for their turn: asked through Nirvana, seen everywhere.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::support::{Answer, Server, V2026, until};

const NONE: (&str, &str) = ("", "");

/// A request as the Nirvana SDKs send it: a bearer, no body, no content type.
async fn bare(server: &Server, method: &str, path: &str, key: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"));
    server.send(request.body(Body::empty()).expect("a request")).await
}

async fn restart(server: &Server, vm: &str) -> Answer {
    bare(server, "POST", &format!("/v1/compute/vms/{vm}/restart"), &server.key).await
}

async fn delete(server: &Server, vm: &str) -> Answer {
    bare(server, "DELETE", &format!("/v1/compute/vms/{vm}"), &server.key).await
}

/// An operation as our own surface shows it.
async fn read(server: &Server, operation: &Value) -> Value {
    let path = format!("/holdfast/v1/operations/{}", operation["id"].as_str().expect("an id"));
    server.at(V2026).any("GET", &path, NONE).await.expect(200)
}

async fn until_over(server: &Server, operation: &Value) -> Value {
    until("the operation is over", async || !read(server, operation).await["completed_at"].is_null()).await;
    read(server, operation).await
}

/// A server whose node stands still, and the UUID of a running VM.
async fn busy_server() -> (Server, String) {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    server.held.store(true, Ordering::Relaxed);
    (server, vm["vm_uuid"].as_str().expect("a UUID").to_owned())
}

#[tokio::test]
async fn what_finds_the_vm_busy_waits_and_is_seen_everywhere() {
    let (server, vm) = busy_server().await;
    let first = restart(&server, &vm).await.expect(200);
    let second = restart(&server, &vm).await.expect(200);
    let last = delete(&server, &vm).await.expect(200);
    for (operation, verb) in [(&first, "restart"), (&second, "restart"), (&last, "delete")] {
        assert_eq!((&operation["kind"], &operation["type"]), (&json!("vm"), &json!(verb)));
        assert_eq!((&operation["resource_id"], &operation["status"]), (&json!(vm), &json!("pending")));
        // Readable at once.
        let path = format!("/v1/operations/{}", operation["id"].as_str().expect("an id"));
        assert_eq!(bare(&server, "GET", &path, &server.key).await.expect(200)["id"], operation["id"]);
    }
    assert_eq!(last["details"]["changes"], json!({ "status": { "from": "running", "to": "deleted" } }));
    let listed = bare(&server, "GET", "/v1/operations?status=pending", &server.key).await.expect(200);
    assert_eq!(listed["items"][0]["id"], last["id"]);
    let phala = server.at(V2026).get("/cvms/my-app/operations").await.expect(200);
    assert_eq!(phala["items"][0]["correlation_id"], last["id"], "{phala}");
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?limit=2", NONE).await.expect(200);
    assert_eq!([&page["items"][0]["waiting_for"], &page["items"][1]["waiting_for"]], [&first["id"], &first["id"]]);
    assert_eq!(read(&server, &first).await["waiting_for"], Value::Null);
    let waiting = read(&server, &last).await;
    assert_eq!((&waiting["waiting_for"], &waiting["started_at"]), (&first["id"], &Value::Null));
    assert_eq!(waiting["events"][0]["event_type"], "instance.delete.start");
    assert_eq!(server.at(V2026).get("/cvms/my-app").await.expect(200)["status"], "restarting");
    // The other surface does not wait.
    let refused = server.at(V2026).post_bytes("/cvms/my-app/stop", Vec::new()).await.expect(409);
    assert_eq!(refused["error_code"], "HF-0104");

    server.held.store(false, Ordering::Relaxed);
    until_over(&server, &last).await;
    for operation in [&first, &second, &last] {
        assert_eq!(read(&server, operation).await["status"], "done");
    }
    assert_eq!(restart(&server, &vm).await.expect(404)["code"], "HF-0101", "it is gone");
    assert_eq!(delete(&server, &vm).await.status, 404);
}

#[tokio::test]
async fn after_a_delete_nothing_stays_pending() {
    let (server, vm) = busy_server().await;
    let gone = delete(&server, &vm).await.expect(200);
    let behind = [restart(&server, &vm).await.expect(200), delete(&server, &vm).await.expect(200)];
    server.held.store(false, Ordering::Relaxed);
    for operation in &behind {
        let over = until_over(&server, operation).await;
        assert_eq!((&over["status"], &over["error"]["code"]), (&json!("failed"), &json!("HF-0101")));
        let by = format!("The VM was deleted by operation {}.", gone["id"].as_str().expect("an id"));
        assert_eq!(over["error"]["message"], by);
        let path = format!("/v1/operations/{}", operation["id"].as_str().expect("an id"));
        assert_eq!(bare(&server, "GET", &path, &server.key).await.expect(200)["status"], "failed");
    }
    assert_eq!(read(&server, &gone).await["status"], "done");
}

#[tokio::test]
async fn one_that_waits_is_cancelled_at_once() {
    let (server, vm) = busy_server().await;
    let first = restart(&server, &vm).await.expect(200);
    let (second, third) = (restart(&server, &vm).await.expect(200), restart(&server, &vm).await.expect(200));
    let path = format!("/holdfast/v1/operations/{}/cancel", second["id"].as_str().expect("an id"));
    let cancelled = server.at(V2026).any("POST", &path, NONE).await.expect(202);
    assert_eq!((&cancelled["status"], &cancelled["cancelled_by"]), (&json!("cancelled"), &json!("admin")));
    assert_eq!(cancelled["waiting_for"], Value::Null);
    let steps = cancelled["steps"].as_array().expect("steps");
    assert!(steps.iter().all(|step| step["state"] == "skipped"), "{steps:?}");
    server.at(V2026).any("POST", &path, NONE).await.expect(409);
    server.held.store(false, Ordering::Relaxed);
    assert_eq!(until_over(&server, &third).await["status"], "done");
    assert_eq!(read(&server, &first).await["status"], "done");
    assert_eq!(read(&server, &second).await["status"], "cancelled");
}

#[tokio::test]
async fn the_line_is_bounded_and_says_so() {
    let (server, vm) = busy_server().await;
    for _ in 0..17 {
        restart(&server, &vm).await.expect(200);
    }
    let full = restart(&server, &vm).await;
    assert_eq!(full.headers["x-should-retry"], "true", "it passes");
    let body = full.expect(409);
    assert_eq!(
        (&body["code"], &body["message"]),
        (&json!("HF-0135"), &json!("16 operations wait for \"my-app\" already."))
    );
    assert!(!body["hint"].as_str().expect("a hint").is_empty());
}

#[tokio::test]
async fn a_stopped_vm_is_not_restarted_now_or_at_its_turn() {
    let (server, vm) = busy_server().await;
    server.at(V2026).post_bytes("/cvms/my-app/stop", Vec::new()).await.expect(200);
    let waiting = restart(&server, &vm).await.expect(200);
    server.held.store(false, Ordering::Relaxed);
    let failed = until_over(&server, &waiting).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("HF-0106")));
    let sentence = "\"my-app\" is stopped; restart needs it to be running or starting or exited or error.";
    assert_eq!(failed["error"]["message"], sentence);
    assert_eq!(failed["resource"]["status"], "stopped");
    let refused = restart(&server, &vm).await;
    assert_eq!(refused.headers["x-should-retry"], "false", "it does not pass");
    let refused = refused.expect(409);
    assert_eq!((&refused["code"], &refused["message"]), (&json!("HF-0106"), &json!(sentence)));
}

#[tokio::test]
async fn only_the_uuid_of_a_vm_of_ones_own_is_known() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    let uuid = vm["vm_uuid"].as_str().expect("a UUID").to_owned();
    for id in ["my-app", &vm["id"].to_string(), &uuid.replace('-', ""), "123e4567-e89b-42d3-a456-426614174000"] {
        assert_eq!(restart(&server, id).await.expect(404)["code"], "HF-0101", "{id}");
        assert_eq!(delete(&server, id).await.status, 404, "{id}");
    }
    let stranger = server.stranger("user").await;
    let path = format!("/v1/compute/vms/{uuid}");
    assert_eq!(bare(&server, "DELETE", &path, &stranger).await.status, 404);
    assert_eq!(bare(&server, "POST", &format!("{path}/restart"), &stranger).await.status, 404);
    assert_eq!(bare(&server, "DELETE", &path, "phak_wrong").await.status, 401);
    server.sql("UPDATE workspace_member SET role = 'viewer' WHERE user_id = 1").await;
    assert_eq!(bare(&server, "DELETE", &path, &server.key).await.status, 403);
    server.sql("UPDATE workspace_member SET role = 'owner' WHERE user_id = 1").await;
    assert_eq!(server.at(V2026).get("/cvms/my-app").await.expect(200)["status"], "running");
}

#[tokio::test]
async fn a_repetition_under_a_key_is_the_same_operation() {
    let (server, vm) = busy_server().await;
    let path = format!("/v1/compute/vms/{vm}/restart");
    let key = ("idempotency-key", "again");
    let first = server.at(V2026).any("POST", &path, key).await.expect(200);
    assert_eq!(server.at(V2026).any("POST", &path, key).await.expect(200), first);
    // As after a crash between the commit and keeping the answer.
    server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
    assert_eq!(server.at(V2026).any("POST", &path, key).await.expect(200)["id"], first["id"]);
    let listed = bare(&server, "GET", "/v1/operations?type=restart", &server.key).await.expect(200);
    assert_eq!(listed["pagination"]["total_count"], 1);
}
