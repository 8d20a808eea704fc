//! `Idempotency-Key`: the same request gets the same answer and happens once.

use serde_json::json;

use crate::support::{Answer, COMPOSE, Server, V2025, V2026, provision};
use axum::body::Body;

async fn post(server: &Server, path: &str, key: &str, body: &str) -> Answer {
    let request = server.at(V2025).request("POST", path).header("idempotency-key", key);
    server.send(request.body(Body::from(body.to_owned())).expect("a request")).await
}

async fn operations(server: &Server) -> usize {
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations", ("", "")).await.expect(200);
    page["items"].as_array().expect("items").len()
}

#[tokio::test]
async fn the_first_answer_again() {
    let server = Server::start().await;
    let body = provision("my-app").to_string();
    let first = post(&server, "/cvms/provision", "p1", &body).await;
    let again = post(&server, "/cvms/provision", "p1", &body).await;
    assert_eq!((first.status, &first.bytes), (again.status, &again.bytes));
    assert!(first.headers.get("idempotency-replayed").is_none());
    assert_eq!(again.headers["idempotency-replayed"], "true");

    let provisioned = first.json();
    let commit = json!({ "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"] }).to_string();
    let first = post(&server, "/cvms", "c1", &commit).await;
    server.until_status("my-app", "running").await;
    let again = post(&server, "/cvms", "c1", &commit).await;
    assert_eq!(again.json()["status"], "creating", "the answer of then, not of now");
    assert_eq!(first.bytes, again.bytes);

    post(&server, "/cvms/my-app/stop", "s1", "").await.expect(200);
    server.until_status("my-app", "stopped").await;
    post(&server, "/cvms/my-app/stop", "s1", "").await.expect(200);
    assert_eq!(operations(&server).await, 2);
    // Without a key it is a new request, and refused.
    server.at(V2025).post_bytes("/cvms/my-app/stop", Vec::new()).await.expect(409);
}

#[tokio::test]
async fn a_delete_is_repeated_after_the_cvm_is_gone() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    let path = format!("/api/v1/cvms/{}", vm["vm_uuid"].as_str().expect("a UUID"));
    let delete = async || server.at(V2026).any("DELETE", &path, ("idempotency-key", "d1")).await.status;
    assert_eq!(delete().await, 204);
    crate::support::until("it is gone", async || server.at(V2026).get("/cvms/my-app").await.status == 404).await;
    assert_eq!(delete().await, 204);
    assert_eq!(operations(&server).await, 2);
}

#[tokio::test]
async fn another_request_under_the_key_is_refused() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    post(&server, "/cvms/my-app/restart", "k1", "{\"force\":true}").await.expect(200);
    server.until_status("my-app", "running").await;
    for (path, body) in [("/cvms/my-app/restart", "{\"force\":false}"), ("/cvms/my-app/stop", "{\"force\":true}")] {
        let refusal = post(&server, path, "k1", body).await.expect(422);
        assert_eq!(refusal["error_code"], "HF-0132");
    }
    assert_eq!(operations(&server).await, 2);
    for bad in ["a b", &"x".repeat(256)] {
        assert_eq!(post(&server, "/cvms/my-app/stop", bad, "").await.expect(400)["error_code"], "HF-0133");
    }
}

#[tokio::test]
async fn a_refusal_takes_no_key_and_keys_are_per_workspace() {
    let server = Server::start().await;
    let bad = json!({ "name": "x", "compose_file": { "docker_compose_file": COMPOSE } }).to_string();
    assert_eq!(post(&server, "/cvms/provision", "k1", &bad).await.status, 422);
    let good = provision("my-app").to_string();
    let mine = post(&server, "/cvms/provision", "k1", &good).await.expect(200);
    let stranger = server.stranger("user").await;
    let request = server.with_key(&stranger).request("POST", "/cvms/provision").header("idempotency-key", "k1");
    let theirs = server.send(request.body(Body::from(good)).expect("a request")).await.expect(200);
    assert_ne!(mine["app_id"], theirs["app_id"]);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_made_again_without_a_second_effect() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    post(&server, "/cvms/my-app/stop", "s1", "").await.expect(200);
    server.until_status("my-app", "stopped").await;
    // As after a crash between the commit and keeping the answer.
    server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
    let again = post(&server, "/cvms/my-app/stop", "s1", "").await.expect(200);
    assert_eq!(again["status"], "stopped");
    assert_eq!(operations(&server).await, 2);
    // Keys are kept for a day.
    server.sql("UPDATE idempotency_key SET expires_at = 1").await;
    assert_eq!(post(&server, "/cvms/my-app/stop", "s1", "").await.status, 409);
}
