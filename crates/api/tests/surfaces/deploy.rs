//! A CVM's life as the CLI drives it, and what each of its ids finds.

use axum::body::Body;
use holdfast_model::hashid::{self, Prefix};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{COMPOSE, NEWEST, Server, V_STRING_IDS, V2025, V2026, provision};

#[tokio::test]
async fn a_life_of_an_app() {
    let server = Server::start().await;
    let mut body = provision("my-app");
    body["compose_file"]["allowed_envs"] = json!(["A"]);
    let provisioned = server.at(V2025).post("/cvms/provision", &body).await.expect(200);
    let key = provisioned["app_env_encrypt_pubkey"].as_str().expect("a key");
    assert_eq!(key.len(), 64);
    assert_eq!(provisioned["kms_info"]["chain_id"], Value::Null);
    assert_eq!(provisioned["kms_info"]["slug"], "holdfast");
    assert_eq!(provisioned["os_image_hash"], "ab".repeat(32));

    let commit = json!({
        "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"], "encrypted_env": "ab".repeat(80),
    });
    let vm = server.at(V2025).post("/cvms", &commit).await.expect(200);
    assert_eq!(vm["app_id"], provisioned["app_id"]);
    assert_eq!(vm["status"], "creating");
    assert!(vm["id"].is_i64() && vm["teepod_id"].is_i64());
    assert_eq!(vm["memory"], 2048);
    server.until_status("my-app", "running").await;

    // The same commit again is the same CVM, in any version's type of id.
    let again = server.at(NEWEST).post("/cvms", &commit).await.expect(200);
    assert_eq!(again["vm_uuid"], vm["vm_uuid"]);
    assert_eq!(again["id"], hashid::encode(Prefix::Cvm, vm["id"].as_i64().expect("an id")));

    let basic = server.at(V2025).get("/cvms/my-app").await.expect(200);
    assert_eq!(basic["encrypted_env_pubkey"], *key);
    let url = basic["public_urls"][0]["app"].as_str().expect("a URL");
    // The node listens everywhere, so it is where the server is.
    assert!(url.starts_with("http://cloud.example:30"), "{url}");
    let log = basic["syslog_endpoint"].as_str().expect("a URL");
    assert!(log.starts_with("https://cloud.example/") && log.contains("?token="), "{log}");

    for (verb, status, rest) in
        [("stop", "stopping", "stopped"), ("start", "starting", "running"), ("restart", "restarting", "running")]
    {
        let answer = server.at(V2026).post_bytes(&format!("/cvms/my-app/{verb}"), Vec::new()).await.expect(200);
        assert_eq!(answer["status"], status);
        server.until_status("my-app", rest).await;
    }
    let answer = server.at(V_STRING_IDS).post("/cvms/my-app/restart", &json!({ "force": true })).await.expect(200);
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("cvm_")));
    server.until_status("my-app", "running").await;

    let gone = server.at(V2026).delete("/cvms/my-app").await;
    assert_eq!((gone.status.as_u16(), gone.bytes.len()), (204, 0));
    crate::support::until("it is gone", async || server.at(V2026).get("/cvms/my-app").await.status == 404).await;
    let operations = format!("/cvms/{}/operations", vm["vm_uuid"].as_str().expect("a UUID"));
    let operations = server.at(V2026).get(&operations).await.expect(200);
    let types: Vec<_> = operations["items"].as_array().expect("items").iter().map(|o| &o["operation_type"]).collect();
    assert_eq!(types, ["delete", "restart", "restart", "power_on", "power_off", "create"]);
    assert!(operations["items"].as_array().expect("items").iter().all(|o| o["status"] == "completed"));
}

#[tokio::test]
async fn every_form_of_id_finds_the_cvm() {
    let server = Server::start().await;
    let vm = server.deploy_running("first-app").await;
    let text = |field: &str| vm[field].as_str().expect(field).to_owned();
    let (uuid, app, instance) = (text("vm_uuid"), text("app_id"), text("instance_id"));
    let key = vm["id"].as_i64().expect("an id");
    let forms = [
        uuid.clone(),
        uuid.replace('-', ""),
        uuid.to_uppercase(),
        format!("app_{app}"),
        app.clone(),
        format!("instance_{instance}"),
        instance,
        hashid::encode(Prefix::Cvm, key),
        key.to_string(),
        "first-app".to_owned(),
    ];
    for form in forms {
        let found = server.at(V2026).get(&format!("/cvms/{form}")).await.expect(200);
        assert_eq!(found["vm_uuid"], uuid, "{form}");
    }
    for form in ["cvm_!!!!", "app_12", "0", "-1", "99999999999999999999", "First-App", "%20", "first-app%00", "%2F"] {
        let answer = server.at(V2026).get(&format!("/cvms/{form}")).await.expect(404);
        assert_eq!(answer["error_code"], "ERR-03-001", "{form}");
    }

    server.deploy_running("second-app").await;
    server.sql("UPDATE vm SET name = 'first-app'").await;
    let answer = server.at(V2026).get("/cvms/first-app").await.expect(409);
    assert_eq!(answer["error_code"], "ERR-03-002");
    server.sql("UPDATE vm SET app_row = 1").await;
    let answer = server.at(V2026).post_bytes(&format!("/cvms/app_{app}/stop"), Vec::new()).await.expect(409);
    assert_eq!(answer["error_code"], "ERR-03-010");
}

#[tokio::test]
async fn one_change_at_a_time() {
    let server = Server::start().await;
    server.deploy_running("busy-app").await;
    server.held.store(true, std::sync::atomic::Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/busy-app/restart", Vec::new()).await.expect(200);
    let cvm = server.at(V2026).get("/cvms/busy-app").await.expect(200);
    assert_eq!((&cvm["status"], &cvm["in_progress"]), (&json!("restarting"), &json!(true)));
    assert_eq!(cvm["progress"]["target"], "running");
    let id = cvm["progress"]["correlation_id"].as_str().expect("an id").to_owned();
    for verb in ["start", "stop", "restart"] {
        let answer = server.at(V2026).post_bytes(&format!("/cvms/busy-app/{verb}"), Vec::new()).await.expect(409);
        assert_eq!(answer["error_code"], "HF-0104");
    }
    assert_eq!(server.at(V2026).delete("/cvms/busy-app").await.status, 409);
    let listed = server.at(V2026).get("/cvms/busy-app/operations?limit=1").await.expect(200);
    let item = &listed["items"][0];
    assert_eq!((item["correlation_id"].as_str(), item["status"].as_str()), (Some(&*id), Some("in_progress")));
    assert_eq!((&item["completed_at"], &item["duration_ms"]), (&Value::Null, &Value::Null));
    server.held.store(false, std::sync::atomic::Ordering::Relaxed);
    server.until_status("busy-app", "running").await;
    // A start needs something that is not running.
    assert_eq!(
        server.at(V2026).post_bytes("/cvms/busy-app/start", Vec::new()).await.expect(409)["error_code"],
        "HF-0106"
    );
}

#[tokio::test]
async fn what_runs_is_what_was_sent() {
    let server = Server::start().await;
    let vm = server.deploy_running("compose-app").await;
    let raw = server.at(V2026).get("/cvms/compose-app/compose_file?raw").await;
    assert!(raw.headers["content-type"].to_str().expect("text").starts_with("text/plain"));
    let cvm = server.at(V2026).get("/cvms/compose-app").await.expect(200);
    assert_eq!(cvm["compose_hash"], holdfast_model::compose::sha256_hex(&raw.bytes));
    assert_eq!(cvm["docker_compose_hash"], holdfast_model::compose::sha256_hex(COMPOSE));
    let object = server.at(V2026).get("/cvms/compose-app/compose_file").await.expect(200);
    assert_eq!(object, raw.json());
    assert_eq!(object["docker_compose_file"], COMPOSE);
    // The clients' schema for this object knows no nulls.
    assert!(object.as_object().expect("an object").values().all(|value| !value.is_null()));
    let yaml = server.at(V2026).get("/cvms/compose-app/docker-compose.yml").await;
    assert_eq!(yaml.text(), COMPOSE);
    assert!(yaml.headers["content-type"].to_str().expect("text").starts_with("text/plain"));

    let composition = server.at(V2026).get("/cvms/compose-app/composition").await.expect(200);
    assert_eq!((&composition["is_online"], &composition["error"]), (&json!(true), &Value::Null));
    let container = &composition["containers"][0];
    assert_eq!(container["names"][0], "/app-web-1");
    let log = container["log_endpoint"].as_str().expect("a URL");
    assert!(log.contains(&format!("{}/app-web-1?token=", vm["vm_uuid"].as_str().expect("a UUID"))), "{log}");
    server.at(V2026).post_bytes("/cvms/compose-app/stop", Vec::new()).await.expect(200);
    server.until_status("compose-app", "stopped").await;
    let composition = server.at(V2026).get("/cvms/compose-app/composition").await.expect(200);
    assert_eq!(composition["is_online"], false);
    assert_eq!(composition["error"], "The CVM is stopped.");
    assert_eq!(composition["containers"], Value::Null);
}

/// The events of a finished stream: (name, data).
fn events(stream: &str) -> Vec<(&str, Value)> {
    let blocks = stream.split("\n\n").filter(|block| !block.is_empty());
    let event = |block: &'_ str| -> (usize, Value) {
        let data = block.split("\ndata: ").nth(1).expect("a data line");
        (block.find('\n').expect("two lines"), serde_json::from_str(data).expect("one line of JSON"))
    };
    blocks
        .map(|block| {
            let (end, data) = event(block);
            (block[..end].strip_prefix("event: ").expect("a name"), data)
        })
        .collect()
}

#[tokio::test]
async fn watching_ends_when_the_cvm_is_as_wanted() {
    let server = Server::start().await;
    server.deploy_running("watch-app").await;
    let watch = async |query: &str| {
        let answer = server.at(V2026).get(&format!("/cvms/watch-app/state?{query}")).await;
        assert_eq!(answer.headers["content-type"], "text/event-stream");
        answer.text()
    };
    let stream = watch("target=running").await;
    let seen = events(&stream);
    assert_eq!(seen.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["state", "complete"]);
    assert_eq!((&seen[0].1["name"], &seen[0].1["status"]), (&json!("watch-app"), &json!("running")));
    assert!(seen[0].1.as_object().expect("an object").values().all(Value::is_string));
    assert_eq!(seen[1].1, json!({ "status": "running", "target": "running", "elapsed": 0 }));

    // Stopping takes a while: the first look sees it, a later one that it is done.
    server.held.store(true, std::sync::atomic::Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/watch-app/stop", Vec::new()).await.expect(200);
    let request = server.at(V2026).request("GET", "/cvms/watch-app/state?target=stopped&interval=5&timeout=30");
    let mut body = server.open(request.body(Body::empty()).expect("a request")).await.into_body();
    let first = body.frame().await.expect("a piece").expect("no error").into_data().expect("data");
    server.held.store(false, std::sync::atomic::Ordering::Relaxed);
    let rest = body.collect().await.expect("the rest").to_bytes();
    let stream = String::from_utf8([first, rest].concat()).expect("text");
    let seen = events(&stream);
    assert_eq!(seen.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["state", "state", "complete"]);
    assert_eq!((&seen[0].1["status"], &seen[1].1["status"]), (&json!("stopping"), &json!("stopped")));

    let stream = watch("target=running&timeout=10").await;
    let (name, data) = events(&stream).pop().expect("an event");
    assert_eq!((name, &data["target"], &data["elapsed"]), ("timeout", &json!("running"), &json!(10)));
}
