//! Changing a CVM: one operation with one whole diff, real reservations, and the way back.

use std::sync::atomic::Ordering;

use holdfast_model::compose::sha256_hex;
use serde_json::{Value, json};

use crate::support::{COMPOSE, Server, V_STRING_IDS, V2025, V2026, provision, until};

const NONE: (&str, &str) = ("", "");
const TWO_PORTS: &str = "services:\n  web:\n    image: hello:2\n    ports: [\"8080:80\"]\n  api:\n    image: api\n    ports: [\"9000:90\"]\n";

async fn operations(server: &Server, id: &str) -> Vec<Value> {
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?limit=50", NONE).await.expect(200);
    let of = |o: &&Value| o["resource"]["name"] == id || o["resource_name"] == id || id.is_empty();
    page["items"].as_array().expect("items").iter().filter(of).cloned().collect()
}

async fn newest(server: &Server) -> Value {
    let id = operations(server, "").await[0]["id"].as_str().expect("an id").to_owned();
    server.at(V2026).any("GET", &format!("/holdfast/v1/operations/{id}"), NONE).await.expect(200)
}

async fn over(server: &Server, answer: &Value) -> Value {
    let path = format!("/holdfast/v1/operations/{}", answer["correlation_id"].as_str().expect("a correlation id"));
    until("the update is over", async || {
        let status = server.at(V2026).any("GET", &path, NONE).await.expect(200)["status"].clone();
        ["done", "failed", "cancelled"].contains(&status.as_str().unwrap_or_default())
    })
    .await;
    server.at(V2026).any("GET", &path, NONE).await.expect(200)
}

fn fields(operation: &Value) -> Vec<String> {
    operation["changes"].as_object().expect("a diff").keys().cloned().collect()
}

/// The steps that were not skipped.
fn ran(operation: &Value) -> Vec<Value> {
    let steps = operation["steps"].as_array().expect("steps").iter();
    steps.filter(|step| step["state"] != "skipped").map(|step| step["name"].clone()).collect()
}

async fn detail(server: &Server) -> Value {
    server.at(V2025).get("/cvms/my-app").await.expect(200)
}

/// Ciphertext as far as the server can tell.
fn env(byte: &str) -> String {
    byte.repeat(64)
}

#[tokio::test]
async fn one_patch_is_one_operation_with_one_whole_diff() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    server.held.store(true, Ordering::Relaxed);
    let body = json!({
        "docker_compose_file": TWO_PORTS, "pre_launch_script": "echo hi", "allowed_envs": ["A", "B"],
        "encrypted_env": env("ab"), "public_logs": false, "public_sysinfo": true, "vcpu": 2.0, "memory": 4096,
        "disk_size": 40, "user_config": "words of the user", "shutdown_timeout": 30, "allow_force_stop": true,
        "image": "holdfast-1.2.3", "unknown": 1,
    });
    let answer = server.at(V2025).patch("/cvms/my-app", &body).await.expect(202);
    assert_eq!((&answer["status"], &answer["restarts"]), (&json!("in_progress"), &json!(true)));
    // The status has left `running` before the answer: the command line's --wait relies on it.
    let busy = server.at(V2026).get("/cvms/my-app").await.expect(200);
    assert_eq!((&busy["status"], &busy["in_progress"]), (&json!("updating"), &json!(true)));
    let refused = server.at(V2026).patch("/cvms/my-app", &json!({ "vcpu": 1 })).await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    server.held.store(false, Ordering::Relaxed);
    let done = over(&server, &answer).await;
    assert_eq!((&done["status"], &done["operation_type"]), (&json!("done"), &json!("update")), "{done:#}");
    assert_eq!(
        fields(&done),
        [
            "allow_force_stop",
            "allowed_envs",
            "compose_hash",
            "disk_gb",
            "env",
            "env_values_replaced",
            "instance_type",
            "memory_mb",
            "ports",
            "public_logs",
            "shutdown_timeout",
            "user_config_replaced",
            "vcpu"
        ]
    );
    assert_eq!(done["changes"]["vcpu"], json!({ "from": 1, "to": 2 }));
    assert_eq!(done["changes"]["env"], json!({ "from": [], "to": ["A", "B"] }));
    assert_eq!(done["changes"]["instance_type"], json!({ "from": "tdx.small", "to": "tdx.medium" }));
    let text = done.to_string();
    assert!(!text.contains(&env("ab")) && !text.contains("words of the user"), "{text}");
    // Nirvana's view of it.
    let path = format!("/v1/operations/{}", answer["correlation_id"].as_str().expect("an id"));
    let nirvana = server.at(V2026).any("GET", &path, NONE).await.expect(200);
    assert_eq!((&nirvana["kind"], &nirvana["type"]), (&json!("vm"), &json!("update")));
    assert_eq!(nirvana["details"]["changes"]["memory_mb"], json!({ "from": 2048, "to": 4096 }));

    let cvm = detail(&server).await;
    assert_eq!((&cvm["status"], &cvm["vcpu"], &cvm["memory"]), (&json!("running"), &json!(2), &json!(4096)));
    assert_eq!((&cvm["disk_size"], &cvm["public_logs"]), (&json!(40), &json!(false)));
    assert_eq!(cvm["public_urls"].as_array().map(Vec::len), Some(2));
    let raw = server.at(V2026).get("/cvms/my-app/compose_file?raw").await;
    assert_eq!(json!(sha256_hex(&raw.bytes)), done["changes"]["compose_hash"]["to"]);
    assert!(raw.text().contains("\"allowed_envs\":[\"A\",\"B\"]") && raw.text().contains("echo hi"));
    assert_eq!(server.at(V2026).get("/cvms/my-app/pre-launch-script").await.text(), "echo hi");
}

#[tokio::test]
async fn a_port_keeps_its_host_port_and_a_port_that_goes_is_given_back() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let before = detail(&server).await["public_urls"][0]["app"].clone();
    let answer = server.at(V2026).patch_bytes("/cvms/my-app/docker-compose", TWO_PORTS.into()).await.expect(202);
    let done = over(&server, &answer).await;
    assert_eq!(done["operation_type"], "compose_update", "{done:#}");
    assert_eq!(fields(&done), ["compose_hash", "ports"]);
    assert_eq!(detail(&server).await["public_urls"][0]["app"], before);
    let ports = |text: String| text.lines().filter(|line| line.starts_with("vm_port:")).count();
    assert_eq!(ports(server.tables().await), 2);
    let answer = server.at(V2026).patch_bytes("/cvms/my-app/docker-compose", COMPOSE.into()).await.expect(202);
    over(&server, &answer).await;
    assert_eq!(ports(server.tables().await), 1);
    assert_eq!(detail(&server).await["public_urls"], json!([{ "app": before, "instance": before }]));
}

#[tokio::test]
async fn a_cancelled_update_leaves_the_revision_before_it() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let before = detail(&server).await;
    server.held.store(true, Ordering::Relaxed);
    let body = json!({ "docker_compose_file": TWO_PORTS, "vcpu": 4, "public_logs": false });
    let answer = server.at(V2026).patch("/cvms/my-app", &body).await.expect(202);
    assert_eq!(detail(&server).await["vcpu"], 4);
    server.at(V2026).post("/cvms/my-app/operations/cancel", &json!({})).await.expect(200);
    server.held.store(false, Ordering::Relaxed);
    let cancelled = over(&server, &answer).await;
    assert_eq!(cancelled["status"], "cancelled", "{cancelled:#}");
    let after = detail(&server).await;
    for field in ["status", "vcpu", "public_logs", "public_urls", "instance_type"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    let held = server.tables().await.lines().filter(|line| line.starts_with("vm_port:")).count();
    assert_eq!(held, 1, "what only the new revision took is given back");
    // The same changes again, on what is in force now.
    server.at(V2026).patch("/cvms/my-app/listed", &json!({ "listed": true })).await.expect(200);
    let path = format!("/holdfast/v1/operations/{}/retry", answer["correlation_id"].as_str().expect("an id"));
    let retried = server.at(V2026).any("POST", &path, NONE).await.expect(202);
    until("it is done", async || newest(&server).await["status"] == "done").await;
    assert_eq!(newest(&server).await["id"], retried["id"]);
    let after = detail(&server).await;
    assert_eq!((&after["vcpu"], &after["public_logs"], &after["listed"]), (&json!(4), &json!(false), &json!(true)));
}

#[tokio::test]
async fn a_resize_says_whether_it_restarts() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    let path = format!("/cvms/app_{}/resources", vm["app_id"].as_str().expect("an app id"));
    // As the command line sends it: all four fields, most of them as they are.
    let body = json!({ "vcpu": 2, "memory": 2048, "disk_size": 20, "allow_restart": 1 });
    let answer = server.at(V2026).patch(&path, &body).await.expect(202);
    assert_eq!(answer["restarts"], true);
    let done = over(&server, &answer).await;
    assert_eq!(
        (&done["operation_type"], fields(&done)),
        (&json!("resize"), vec!["instance_type".into(), "vcpu".into()])
    );
    assert_eq!(ran(&done), ["apply", "start", "boot", "launch"]);
    // A name for a size.
    let answer = server.at(V2026).patch(&path, &json!({ "instance_type": "tdx.large" })).await.expect(202);
    over(&server, &answer).await;
    let cvm = detail(&server).await;
    assert_eq!((&cvm["vcpu"], &cvm["memory"], &cvm["disk_size"]), (&json!(4), &json!(8192), &json!(20)));

    let refused = |body: Value| {
        let (server, path) = (&server, &path);
        async move {
            let answer = server.at(V2026).patch(path, &body).await;
            (answer.status.as_u16(), answer.json()["error_code"].as_str().unwrap_or_default().to_owned())
        }
    };
    let code = |http: u16, code: &str| (http, code.to_owned());
    assert_eq!(refused(json!({ "disk_size": 10 })).await, code(400, "ERR-02-008"));
    assert_eq!(refused(json!({ "vcpu": 5, "allow_restart": 0 })).await, code(400, "ERR-02-008"));
    assert_eq!(refused(json!({ "vcpu": 1000 })).await, code(400, "ERR-02-003"));
    assert_eq!(refused(json!({ "memory": 1_000_000 })).await, code(400, "ERR-02-004"));
    assert_eq!(refused(json!({ "instance_type": "tdx.none" })).await, code(400, "ERR-02-001"));
    assert_eq!(refused(json!({ "memory": 100 })).await.0, 422);
    assert_eq!(detail(&server).await["status"], "running", "what was refused changed nothing");

    // Stopped, it gets it written and is started by nobody.
    server.at(V2026).post("/cvms/my-app/stop", &json!({})).await.expect(200);
    server.until_status("my-app", "stopped").await;
    let answer = server.at(V2026).patch(&path, &json!({ "vcpu": 1, "allow_restart": 0 })).await.expect(202);
    assert_eq!(answer["restarts"], false);
    assert_eq!(newest(&server).await["status"], "done", "nobody had to do anything");
    let cvm = detail(&server).await;
    assert_eq!((&cvm["status"], &cvm["vcpu"]), (&json!("stopped"), &json!(1)));
}

#[tokio::test]
async fn room_is_held_for_the_larger_size_until_an_update_is_over() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let free = async || server.at(V2026).get("/teepods/available").await.expect(200)["nodes"][0].clone();
    let before = free().await["remaining_memory"].as_i64().expect("memory");
    server.held.store(true, Ordering::Relaxed);
    let grow = server.at(V2026).patch("/cvms/my-app", &json!({ "memory": 10_240 })).await.expect(202);
    assert_eq!(free().await["remaining_memory"], before - 8192);
    server.held.store(false, Ordering::Relaxed);
    over(&server, &grow).await;
    server.held.store(true, Ordering::Relaxed);
    let shrink = server.at(V2026).patch("/cvms/my-app", &json!({ "memory": 2048 })).await.expect(202);
    assert_eq!(free().await["remaining_memory"], before - 8192, "the way back needs it");
    server.held.store(false, Ordering::Relaxed);
    over(&server, &shrink).await;
    assert_eq!(free().await["remaining_memory"], before);
}

#[tokio::test]
async fn env_values_are_replaced_and_only_their_names_are_told() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let body = json!({ "encrypted_env": env("cd"), "env_keys": ["TOKEN"] });
    let answer = server.at(V2026).patch("/cvms/my-app/envs", &body).await.expect(202);
    // The only shape that the SDK takes for success.
    assert_eq!((&answer["status"], &answer["allowed_envs_changed"]), (&json!("in_progress"), &json!(true)));
    assert!(answer["message"].is_string() && answer["correlation_id"].is_string());
    let done = over(&server, &answer).await;
    assert_eq!((&done["operation_type"], &done["status"]), (&json!("env_update"), &json!("done")));
    assert_eq!(fields(&done), ["allowed_envs", "compose_hash", "env", "env_values_replaced"]);
    // Other values under the same names: nothing that was measured changes.
    let body = json!({ "encrypted_env": format!("0x{}", env("EF")) });
    let answer = server.at(V2026).patch("/cvms/my-app/envs", &body).await.expect(202);
    assert_eq!((&answer["allowed_envs_changed"], &answer["restarts"]), (&json!(false), &json!(false)));
    let done = over(&server, &answer).await;
    assert_eq!(done["changes"], json!({ "env_values_replaced": { "from": false, "to": true } }));
    assert_eq!(ran(&done), ["apply", "launch"], "the running app takes it over");
    for (body, http) in [
        (json!({}), 422),
        (json!({ "encrypted_env": "" }), 422),
        (json!({ "encrypted_env": "xyz" }), 422),
        (json!({ "encrypted_env": env("ab"), "transaction_hash": "0x1" }), 400),
    ] {
        server.at(V2026).patch("/cvms/my-app/envs", &body).await.expect(http);
    }
    // With the CVM goes its ciphertext, that of earlier revisions too.
    assert!(server.tables().await.contains(&env("cd")));
    server.at(V2026).delete("/cvms/my-app").await;
    until("it is gone", async || server.at(V2026).get("/cvms/my-app").await.status == 404).await;
    let tables = server.tables().await;
    assert!(!tables.contains(&env("cd")) && !tables.contains(&env("ef")));
}

#[tokio::test]
async fn a_compose_file_in_two_requests_and_in_one() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    let compose =
        json!({ "name": "", "docker_compose_file": TWO_PORTS, "public_logs": false, "update_env_vars": true });
    let path = "/cvms/my-app/compose_file";
    let provisioned = server.at(V2026).post(&format!("{path}/provision"), &compose).await.expect(200);
    assert_eq!(provisioned["app_id"], vm["app_id"]);
    let keys: Vec<_> = provisioned.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["app_id", "compose_hash", "compose_hash_registered", "device_id", "kms_info"]);
    let nulls = json!({ "compose_hash": provisioned["compose_hash"], "encrypted_env": null, "env_keys": null, "update_env_vars": null });
    let answer = server.at(V2026).patch(path, &nulls).await.expect(202);
    let done = over(&server, &answer).await;
    assert_eq!((&done["operation_type"], &done["status"]), (&json!("compose_update"), &json!("done")), "{done:#}");
    assert_eq!(fields(&done), ["compose_hash", "ports", "public_logs"]);
    let raw = server.at(V2026).get("/cvms/my-app/compose_file?raw").await;
    assert_eq!(json!(sha256_hex(&raw.bytes)), provisioned["compose_hash"]);
    assert!(!raw.text().contains("update_env_vars"));
    server.at(V2026).patch(path, &json!({ "compose_hash": "00".repeat(32) })).await.expect(422);

    let mut whole = json!({ "compose_file": { "name": "x", "docker_compose_file": COMPOSE }, "compose_hash": "00" });
    let refused = server.at(V2026).post(path, &whole).await.expect(422);
    let hash = refused["detail"][0]["msg"].as_str().and_then(|m| m.rsplit(' ').next()).expect("the hash").to_owned();
    whole["compose_hash"] = hash.as_str().into();
    let answer = server.at(V2026).post(path, &whole).await.expect(202);
    assert_eq!(over(&server, &answer).await["changes"]["compose_hash"]["to"], json!(hash));
    for (yaml, http) in [("services: {}", 400), ("- what", 400), ("", 400)] {
        server.at(V2026).patch_bytes("/cvms/my-app/docker-compose", yaml.into()).await.expect(http);
    }
    let script = server.at(V2026).patch_bytes("/cvms/my-app/pre-launch-script", "true".into()).await.expect(202);
    over(&server, &script).await;
    let none = server.at(V2026).patch_bytes("/cvms/my-app/pre-launch-script", Vec::new()).await.expect(202);
    assert_eq!(over(&server, &none).await["changes"]["compose_hash"]["to"], json!(hash), "as it was before the script");
}

#[tokio::test]
async fn what_no_node_has_to_know_is_over_when_it_is_answered() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    server.deploy_running("taken").await;
    server.held.store(true, Ordering::Relaxed);
    let body = json!({ "public_sysinfo": false, "public_logs": false });
    let shown = server.at(V_STRING_IDS).patch("/cvms/my-app/visibility", &body).await.expect(200);
    assert_eq!((&shown["public_logs"], &shown["public_sysinfo"]), (&json!(false), &json!(false)));
    assert!(shown["id"].is_i64() && shown["status"] == "running", "the variant of 2025-10-28, and done: {shown}");
    let operation = newest(&server).await;
    assert_eq!((&operation["operation_type"], &operation["status"]), (&json!("visibility_update"), &json!("done")));
    assert_eq!(fields(&operation), ["public_logs", "public_sysinfo"]);
    assert_eq!(server.at(V2026).get("/cvms/my-app").await.expect(200)["public_logs"], false);

    let listed = server.at(V_STRING_IDS).patch("/cvms/my-app/listed", &json!({ "listed": true })).await.expect(200);
    assert!(listed["id"].is_string());
    assert_eq!(detail(&server).await["listed"], true);

    for (name, http) in [("taken", 409), ("a", 422), ("two--dashes", 422)] {
        server.at(V2026).patch("/cvms/my-app/name", &json!({ "name": name })).await.expect(http);
    }
    let renamed = server.at(V2026).patch("/cvms/my-app/name", &json!({ "name": "other-app" })).await;
    assert_eq!((renamed.status.as_u16(), renamed.bytes.len()), (204, 0));
    assert_eq!(newest(&server).await["changes"], json!({ "name": { "from": "my-app", "to": "other-app" } }));
    assert_eq!(server.at(V2026).get("/cvms/other-app").await.expect(200)["name"], "other-app");
    server.at(V2026).get("/cvms/my-app").await.expect(404);
    // The old name is free for another app, the new one is not.
    server.at(V2025).post("/cvms/provision", &provision("my-app")).await.expect(200);
    server.at(V2025).post("/cvms/provision", &provision("other-app")).await.expect(409);
}

#[tokio::test]
async fn nothing_changed_is_an_operation_too() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    server.held.store(true, Ordering::Relaxed);
    let same = json!({ "docker_compose_file": COMPOSE, "vcpu": 1, "public_logs": true });
    for (path, body, name) in [
        ("/cvms/my-app", same, "update"),
        ("/cvms/my-app", json!({}), "update"),
        ("/cvms/my-app/resources", json!({ "vcpu": 1 }), "resize"),
        ("/cvms/my-app/os-image", json!({ "os_image_name": "holdfast-1.2.3" }), "os_image_update"),
    ] {
        let answer = server.at(V2026).patch(path, &body).await.expect(202);
        let operation = newest(&server).await;
        assert_eq!(operation["id"], answer["correlation_id"]);
        assert_eq!((&operation["operation_type"], &operation["status"]), (&json!(name), &json!("done")));
        assert_eq!(operation["changes"], json!({}));
    }
    assert_eq!(detail(&server).await["status"], "running");
    let revisions = server.tables().await.lines().filter(|line| line.starts_with("vm_revision:")).count();
    assert_eq!(revisions, 1);
}

#[tokio::test]
async fn images_and_what_cannot_be_had() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let images = server.at(V2026).get("/cvms/my-app/available-os-images").await.expect(200);
    let variant = json!({ "name": "holdfast-1.2.3", "slug": "holdfast-1.2.3", "os_image_hash": "ab".repeat(32), "is_current": true });
    assert_eq!(images, json!([{ "version": [1, 2, 3], "prod": variant, "dev": null }]));
    let missing =
        server.at(V2026).patch("/cvms/my-app/os-image", &json!({ "os_image_name": "none" })).await.expect(400);
    assert_eq!(missing["error_code"], "ERR-02-010");
    for (body, http) in [
        (json!({ "gpus": { "attach_mode": "all" } }), 400),
        (json!({ "shutdown_timeout": 5 }), 422),
        (json!({ "shutdown_timeout": 1201 }), 422),
        (json!({ "vcpu": "2" }), 422),
        (json!({ "image": "none" }), 400),
        (json!({ "docker_compose_file": "services:\n" }), 400),
    ] {
        server.at(V2026).patch("/cvms/my-app", &body).await.expect(http);
    }
    for header in ["x-prepare-only", "x-compose-hash", "x-transaction-hash"] {
        let request = server.at(V2026).request("PATCH", "/cvms/my-app").header(header, "true");
        server.send(request.body("{}".into()).expect("a request")).await.expect(400);
    }
    server.at(V2026).patch("/cvms/nobody", &json!({})).await.expect(404);
    assert_eq!(operations(&server, "").await.len(), 1, "what was refused left no operation");
}

#[tokio::test]
async fn an_update_under_one_key_happens_once() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let send = async |body: &Value| {
        let request = server.at(V2026).request("PATCH", "/cvms/my-app").header("idempotency-key", "k");
        server.send(request.body(body.to_string().into()).expect("a request")).await
    };
    let first = send(&json!({ "vcpu": 2 })).await.expect(202);
    over(&server, &first).await;
    assert_eq!(send(&json!({ "vcpu": 2 })).await.expect(202), first);
    assert_eq!(send(&json!({ "vcpu": 3 })).await.status, 422);
    assert_eq!(operations(&server, "").await.len(), 2);
}
