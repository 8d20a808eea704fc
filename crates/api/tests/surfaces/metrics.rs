//! `/metrics`, and what it says of operations that need a person.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::support::{Server, V2026, until};

const NONE: (&str, &str) = ("", "");

async fn metrics(server: &Server) -> String {
    let answer = server.without_key().any("GET", "/metrics", NONE).await;
    assert_eq!(answer.status, 200);
    let kind = answer.headers["content-type"].to_str().expect("text");
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    answer.text()
}

/// The value of a series, if it is there.
async fn value(server: &Server, series: &str) -> Option<f64> {
    let text = metrics(server).await;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

async fn newest(server: &Server) -> Value {
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?limit=1", NONE).await.expect(200);
    page["items"][0].clone()
}

async fn until_value(server: &Server, series: &str, wanted: f64) {
    until(&format!("{series} is {wanted}"), async || value(server, series).await == Some(wanted)).await;
}

#[tokio::test]
async fn operations_requests_and_nodes_are_counted() {
    let server = Server::start().await;
    assert_eq!(value(&server, "holdfast_operations{status=\"stuck\"}").await, Some(0.0));
    server.deploy_running("secret-name").await;
    let done = "holdfast_operations_finished_total{type=\"create\",outcome=\"done\"}";
    until_value(&server, done, 1.0).await;
    let duration = "holdfast_operation_duration_seconds_count{type=\"create\"}";
    assert_eq!(value(&server, duration).await, Some(1.0));
    assert_eq!(value(&server, "holdfast_accept_duration_seconds_count").await, Some(1.0));
    assert_eq!(value(&server, "holdfast_nodes{state=\"online\"}").await, Some(1.0));
    assert_eq!(value(&server, "holdfast_nodes{state=\"offline\"}").await, Some(0.0));
    let posts = "holdfast_http_requests_total{surface=\"phala\",method=\"POST\",status=\"2xx\"}";
    assert_eq!(value(&server, posts).await, Some(2.0));
    let timed = "holdfast_http_request_duration_seconds_count{surface=\"phala\",method=\"POST\"}";
    assert_eq!(value(&server, timed).await, Some(2.0));
    // There is no sealer in this server.
    assert!(value(&server, "holdfast_events_unsealed").await > Some(5.0));
    assert!(value(&server, "process_resident_memory_bytes").await > Some(1e6));

    server.held.store(true, Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/secret-name/stop", Vec::new()).await.expect(200);
    until_value(&server, "holdfast_operations{status=\"running\"}", 1.0).await;
    let text = metrics(&server).await;
    for secret in ["secret-name", "test-node", "admin", "default", &server.key] {
        assert!(!text.contains(secret), "{secret} is in the metrics:\n{text}");
    }
}

#[tokio::test]
async fn every_metric_is_documented_and_nothing_else_is() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let text = metrics(&server).await;
    let page = include_str!("../../../../docs/metrics.md");
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 8, "{text}");
    for name in &names {
        assert!(page.contains(&format!("| `{name}")), "{name} is not in docs/metrics.md");
    }
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()) {
        let name = row.strip_suffix("_total").or(row.strip_suffix("_info")).unwrap_or(row);
        // Nothing has gone wrong here.
        assert!(names.contains(&name) || name == "holdfast_operation_faults", "{row} is not a metric");
    }
}

#[tokio::test]
async fn a_stuck_operation_shows_until_it_is_abandoned() {
    let server = Server::start().await;
    server.held.store(true, Ordering::Relaxed);
    server.deploy("my-app").await;
    until("the create has begun", async || newest(&server).await["status"] == "running").await;
    server.sql("UPDATE operation SET status = 'stuck', wake_at = NULL").await;
    let stuck = "holdfast_operations{status=\"stuck\"}";
    assert_eq!(value(&server, stuck).await, Some(1.0));
    let path = format!("/holdfast/v1/operations/{}/abandon", newest(&server).await["id"].as_str().expect("an id"));
    server.at(V2026).any("POST", &path, NONE).await.expect(200);
    assert_eq!(value(&server, stuck).await, Some(0.0));
}

#[tokio::test]
async fn a_poisoned_operation_is_parked_and_the_others_finish() {
    let server = Server::start().await;
    server.deploy_running("poisoned-app").await;
    server.deploy_running("healthy-app").await;
    server.held.store(true, Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/poisoned-app/stop", Vec::new()).await.expect(200);
    until("the stop has begun", async || newest(&server).await["status"] == "running").await;
    let poisoned = newest(&server).await;
    // It is due at the same moment as the other one, and before it.
    server.sql("UPDATE operation SET direction = 'sideways', wake_at = 1 WHERE operation_type = 'power_off'").await;
    server.held.store(false, Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/healthy-app/restart", Vec::new()).await.expect(200);
    server.until_status("healthy-app", "running").await;

    let path = format!("/holdfast/v1/operations/{}", poisoned["id"].as_str().expect("an id"));
    let read = async || server.at(V2026).any("GET", &path, NONE).await.expect(200);
    until("it is parked", async || read().await["status"] == "stuck").await;
    let parked = read().await;
    assert_eq!(parked["error"]["code"], "HF-0207", "{parked}");
    assert!(parked["error"]["internal"].as_str().expect("a cause").contains("sideways"), "{parked}");
    let last = parked["events"].as_array().and_then(|events| events.last()).expect("an event");
    assert_eq!(last["event_type"], "instance.power_off.park.error");
    assert_eq!(value(&server, "holdfast_operations{status=\"stuck\"}").await, Some(1.0));
    assert_eq!(value(&server, "holdfast_operation_faults_total{kind=\"lasting\"}").await, Some(1.0));
    // It stays out of the way: nothing tries it again.
    server.at(V2026).post_bytes("/cvms/healthy-app/stop", Vec::new()).await.expect(200);
    server.until_status("healthy-app", "stopped").await;
    assert_eq!(value(&server, "holdfast_operation_faults_total{kind=\"lasting\"}").await, Some(1.0));
    assert_eq!(read().await["events"], parked["events"]);
    let abandoned = server.at(V2026).any("POST", &format!("{path}/abandon"), NONE).await.expect(200);
    assert_eq!((&abandoned["status"], &abandoned["error"]["code"]), (&json!("failed"), &json!("HF-0207")));
}

#[tokio::test]
async fn a_plan_of_another_version_is_parked_until_a_server_knows_it() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    server.held.store(true, Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/my-app/stop", Vec::new()).await.expect(200);
    until("the stop has begun", async || newest(&server).await["status"] == "running").await;
    // Its first failure must come back with it.
    server.sql("UPDATE operation SET plan_version = 99, error_code = 'HF-0201', error_message = 'first', wake_at = 1 WHERE operation_type = 'power_off'").await;
    server.held.store(false, Ordering::Relaxed);
    until("it is parked", async || newest(&server).await["status"] == "stuck").await;
    let parked = newest(&server).await;
    assert_eq!(parked["error"]["code"], "HF-0206", "{parked}");
    assert!(parked["error"]["message"].as_str().expect("a text").contains("another version of the server"), "{parked}");
    assert!(parked["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
    assert_eq!(value(&server, "holdfast_operations{status=\"stuck\"}").await, Some(1.0));

    // A start of a server that does not know it either leaves it alone.
    let grace = std::time::Duration::from_secs(60);
    server.control.store.operations_recover(grace, server.control.now()).await.expect("a start");
    assert_eq!(newest(&server).await["events"], parked["events"]);
    server.sql("UPDATE operation SET plan_version = 1").await;
    server.control.store.operations_recover(grace, server.control.now()).await.expect("a start");
    server.until_status("my-app", "stopped").await;
    let done = newest(&server).await;
    assert_eq!((&done["status"], &done["error"]["message"]), (&json!("done"), &json!("first")));
    let types: Vec<_> = done["events"].as_array().expect("events").iter().map(|e| e["event_type"].clone()).collect();
    assert!(types.contains(&json!("instance.power_off.park.error")), "{types:?}");
    assert!(types.contains(&json!("instance.power_off.park.end")), "{types:?}");
    assert_eq!(value(&server, "holdfast_operations{status=\"stuck\"}").await, Some(0.0));
}
