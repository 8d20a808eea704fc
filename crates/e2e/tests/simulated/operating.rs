//! What an operator meets: operations of another version, secrets that were shown once, metrics; across restarts of the
//! real process.

use std::path::Path;

use holdfast_e2e::cloud::{Cloud, SOON};
use holdfast_harness::{operation, until};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

fn sql(data: &Path, statement: &str) {
    let url = format!("sqlite://{}", data.join("holdfast.db").display());
    let work = async {
        let mut db = SqliteConnection::connect(&url).await.expect("a connection");
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut db).await.expect("a statement");
        db.close().await.expect("closed");
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work);
}

/// The value of a series in `/metrics`.
fn metric(cloud: &Cloud, series: &str) -> f64 {
    let text = cloud.client.get("/metrics").expect("the server answers").text;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {series} in {text}")).parse().expect("a number")
}

#[test]
fn an_operation_of_another_version_waits_for_a_server_that_knows_it() {
    let mut cloud = Cloud::simulated(20);
    let (cvm, create) = cloud.deploy("patient");
    cloud.server.kill().expect("it was running");
    let data = cloud.data_dir();
    sql(&data, "UPDATE operation SET plan_version = 99");
    cloud.server.restart().expect("it starts");
    let parked = until(SOON, "it is parked", || {
        let operation = operation::by_id(&cloud.client, &create).unwrap_or(Value::Null);
        Ok((operation["status"] == "stuck").then_some(operation))
    });
    let parked = parked.expect("an operation without a plan is stuck");
    assert_eq!(parked["error"]["code"], "HF-0206", "{parked}");
    let stuck = "holdfast_operations{status=\"stuck\"}";
    assert!((metric(&cloud, stuck) - 1.0).abs() < 0.1);
    assert_eq!(cloud.server.log_end(1000).matches("operation parked").count(), 1, "it is logged once");
    let delete = cloud.client.delete(&format!("/api/v1/cvms/{cvm}")).expect("the server answers");
    assert_eq!(delete.status, 409, "its CVM stays claimed: {}", delete.text);

    cloud.server.stop().expect("it was running");
    sql(&data, "UPDATE operation SET plan_version = 1");
    cloud.server.restart().expect("it starts again");
    let done = cloud.done(&create, SOON);
    assert_eq!(done["error"], Value::Null, "{done}");
    assert!(metric(&cloud, stuck).abs() < 0.1);
    cloud.deleted(&cvm);
}

#[test]
fn a_secret_is_not_shown_again_after_a_restart() {
    let mut cloud = Cloud::simulated(1);
    let body = json!({ "name": "rack-7" });
    let make = |cloud: &Cloud| {
        let headers = [("idempotency-key", "once")];
        cloud
            .client
            .send("POST", "/holdfast/v1/node-tokens", &headers, Some(body.to_string().into_bytes()))
            .expect("the server answers")
    };
    let made = make(&cloud);
    assert_eq!(made.status, 201, "{}", made.text);
    let made = made.json();
    let token = made["token"].as_str().expect("a token").to_owned();
    cloud.server.kill().expect("it was running");
    cloud.server.restart().expect("it starts again");
    let again = make(&cloud);
    assert_eq!(again.status, 409, "{}", again.text);
    assert_eq!(again.json()["error"]["code"], "HF-0134");
    assert!(again.text.contains(made["id"].as_str().expect("an id")) && !again.text.contains(&token));
    cloud.server.stop().expect("it was running");
    let found = |name: &str| {
        let bytes = std::fs::read(cloud.data_dir().join(name)).unwrap_or_default();
        bytes.windows(token.len()).any(|window| window == token.as_bytes())
    };
    assert!(!found("holdfast.db") && !found("holdfast.db-wal"), "the token is in the database");
}
