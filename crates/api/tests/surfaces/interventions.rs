//! Cancelling, retrying and abandoning, on our surface and on Phala's.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::support::{Server, V2026, until};

const NONE: (&str, &str) = ("", "");

async fn newest(server: &Server) -> Value {
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?limit=1", NONE).await.expect(200);
    page["items"][0].clone()
}

async fn act(server: &Server, operation: &Value, verb: &str) -> crate::support::Answer {
    let path = format!("/holdfast/v1/operations/{}/{verb}", operation["id"].as_str().expect("an id"));
    server.at(V2026).any("POST", &path, NONE).await
}

async fn until_over(server: &Server, status: &str) -> Value {
    until(&format!("the newest operation is {status}"), async || newest(server).await["status"] == status).await;
    newest(server).await
}

#[tokio::test]
async fn a_create_is_cancelled_and_leaves_nothing() {
    let server = Server::start().await;
    server.held.store(true, Ordering::Relaxed);
    server.deploy("my-app").await;
    let running = server.at(V2026).get("/cvms/my-app/operation-status").await.expect(200);
    assert_eq!((&running["status"], &running["operation_type"]), (&json!("in_progress"), &json!("create")));
    let answer = server.at(V2026).post_bytes("/cvms/my-app/operations/cancel", Vec::new()).await.expect(200);
    assert_eq!(answer["cancelled"], true);
    assert_eq!(answer["correlation_id"], running["correlation_id"]);
    server.held.store(false, Ordering::Relaxed);
    let over = until_over(&server, "cancelled").await;
    assert_eq!((&over["cancelled_by"], &over["error"]["code"]), (&json!("admin"), &json!("HF-0204")));
    assert_eq!(over["steps"][0]["state"], "done");
    server.at(V2026).get("/cvms/my-app").await.expect(404);
    // Its name is free again.
    server.deploy_running("my-app").await;
    let idle = server.at(V2026).get("/cvms/my-app/operation-status").await.expect(200);
    assert_eq!(idle["status"], "idle");
}

#[tokio::test]
async fn what_cannot_be_cancelled_says_why() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let done = newest(&server).await;
    let refusal = act(&server, &done, "cancel").await.expect(409);
    assert_eq!(refusal["error"]["code"], "HF-0130");
    server.at(V2026).post_bytes("/cvms/my-app/operations/cancel", Vec::new()).await.expect(409);

    server.held.store(true, Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/my-app/stop", Vec::new()).await.expect(200);
    until("the stop has begun", async || newest(&server).await["status"] == "running").await;
    let refusal = act(&server, &newest(&server).await, "cancel").await.expect(409);
    assert!(refusal["error"]["message"].as_str().expect("a text").contains("past the point"), "{refusal}");
    server.held.store(false, Ordering::Relaxed);
    until_over(&server, "done").await;

    let unknown = json!({ "id": "123e4567-e89b-42d3-a456-426614174000" });
    act(&server, &unknown, "cancel").await.expect(404);
    let key = server.stranger("user").await;
    let path = format!("/holdfast/v1/operations/{}/cancel", done["id"].as_str().expect("an id"));
    server.with_key(&key).any("POST", &path, NONE).await.expect(404);
}

#[tokio::test]
async fn a_failed_operation_is_retried_as_a_new_one() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    server.at(V2026).post_bytes("/cvms/my-app/restart", Vec::new()).await.expect(200);
    server.until_status("my-app", "running").await;
    let restart = newest(&server).await;
    assert_eq!(act(&server, &restart, "retry").await.expect(409)["error"]["code"], "HF-0131");

    server.sql("UPDATE operation SET status = 'failed'").await;
    let new = act(&server, &restart, "retry").await.expect(202);
    assert_eq!((&new["retry_of"], &new["operation_type"]), (&restart["id"], &json!("restart")));
    assert_ne!(new["id"], restart["id"]);
    until_over(&server, "done").await;

    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?operation_type=create", NONE).await.expect(200);
    let refusal = act(&server, &page["items"][0], "retry").await.expect(409);
    assert_eq!(refusal["error"]["code"], "HF-0131");
}

#[tokio::test]
async fn a_stuck_operation_is_abandoned_by_an_administrator_only() {
    let server = Server::start().await;
    server.held.store(true, Ordering::Relaxed);
    server.deploy("my-app").await;
    until("the create has begun", async || newest(&server).await["status"] == "running").await;
    let operation = newest(&server).await;
    act(&server, &operation, "abandon").await.expect(409);
    server.sql("UPDATE operation SET status = 'stuck', wake_at = NULL").await;
    server.at(V2026).delete("/cvms/my-app").await.expect(409);
    let abandoned = act(&server, &operation, "abandon").await.expect(200);
    assert_eq!((&abandoned["status"], &abandoned["resource"]["status"]), (&json!("failed"), &json!("error")));
    server.held.store(false, Ordering::Relaxed);
    assert_eq!(server.at(V2026).delete("/cvms/my-app").await.status, 204);
    until_over(&server, "done").await;

    let key = server.stranger("user").await;
    let path = format!("/holdfast/v1/operations/{}/abandon", operation["id"].as_str().expect("an id"));
    server.with_key(&key).any("POST", &path, NONE).await.expect(403);
}
