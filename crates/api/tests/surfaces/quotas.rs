//! Quotas: shown as they are, refused at the border, given back exactly once, and set by administrators only.

use std::sync::atomic::Ordering;

use axum::body::Body;
use serde_json::{Value, json};

use crate::support::{Answer, Server, V2025, V2026, provision, until};

const NONE: (&str, &str) = ("", "");
const DEFAULT: &str = "/holdfast/v1/quotas/default";

async fn change(server: &Server, path: &str, body: &Value, key: &str) -> Answer {
    let request = server.at(V2026).request("PATCH", "/").uri(path);
    let request = if key.is_empty() { request } else { request.header("idempotency-key", key) };
    server.send(request.body(Body::from(body.to_string())).expect("a request")).await
}

/// Sets limits of the administrator's workspace.
async fn limit(server: &Server, body: Value) -> Value {
    change(server, DEFAULT, &body, "").await.expect(200)
}

/// What the workspace itself sees: (limit, remaining) of one dimension.
async fn left(server: &Server, name: &str) -> (i64, i64) {
    let quotas = server.at(V2026).get("/workspaces/default/quotas").await.expect(200);
    let of = |key: &str| quotas["quotas"][name][key].as_i64().expect("a number");
    (of("limit"), of("remaining"))
}

/// It was refused for the quota, and says in these words what is short.
#[track_caller]
fn exceeded(answer: Answer, words: &str) {
    let body = answer.expect(400);
    assert_eq!(body["error_code"], "ERR-02-015", "{body}");
    assert!(body["message"].as_str().is_some_and(|text| text.contains(words)), "{body}");
    assert!(body["suggestions"][0].as_str().is_some_and(|text| text.contains("quotas set")), "{body}");
    assert!(body["details"][0]["field"].as_str().is_some_and(|field| field.starts_with("quota.")), "{body}");
}

async fn commit_of(server: &Server, name: &str) -> Value {
    let provisioned = server.at(V2025).post("/cvms/provision", &provision(name)).await.expect(200);
    json!({ "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"] })
}

#[tokio::test]
async fn limits_are_shown_as_they_are_and_the_catalogue_agrees() {
    let server = Server::start().await;
    for name in ["vm_slots", "vcpu", "memory_mb", "disk_gb"] {
        assert_eq!(left(&server, name).await, (-1, -1), "{name}: no limit until one is set");
    }
    let open = server.at(V2026).get("/teepods/available").await.expect(200)["capacity"].clone();
    assert_eq!(open, json!({ "max_instances": null, "max_vcpu": null, "max_memory": null, "max_disk": null }));

    server.deploy_running("first-app").await;
    let told = limit(&server, json!({ "vm_slots": 3, "vcpu": 8, "memory_mb": 4096 })).await;
    assert_eq!(told["quotas"]["vcpu"], json!({ "limit": 8, "used": 1, "remaining": 7 }), "{told}");
    assert_eq!(told["quotas"]["disk_gb"], json!({ "limit": null, "used": 20, "remaining": null }), "{told}");
    assert_eq!(told["slug"], "default");
    assert_eq!(left(&server, "vm_slots").await, (3, 2));
    assert_eq!(left(&server, "vcpu").await, (8, 7));
    assert_eq!(left(&server, "memory_mb").await, (4096, 2048));
    assert_eq!(left(&server, "disk_gb").await, (-1, -1));
    for path in ["/teepods/available", "/teepods/cvm-create-resources"] {
        let capacity = server.at(V2026).get(path).await.expect(200)["capacity"].clone();
        let limits = json!({ "max_instances": 3, "max_vcpu": 8, "max_memory": 4096, "max_disk": null });
        assert_eq!(capacity, limits, "{path}");
    }
    // The same by the id, and for nobody else's workspace.
    let id = told["workspace"].as_str().expect("an id").to_owned();
    assert_eq!(server.at(V2026).any("GET", &format!("/holdfast/v1/quotas/{id}"), NONE).await.expect(200), told);
    let key = server.stranger("user").await;
    let elsewhere = server.with_key(&key).get("/workspaces/elsewhere/quotas").await.expect(200);
    assert_eq!(elsewhere["quotas"]["vcpu"], json!({ "limit": -1, "remaining": -1 }));
}

#[tokio::test]
async fn what_is_beyond_a_quota_is_refused_and_leaves_nothing() {
    let server = Server::start().await;
    server.deploy_running("first-app").await;
    let waiting = commit_of(&server, "second-app").await;
    limit(&server, json!({ "vm_slots": 1, "vcpu": 2 })).await;
    // What was promised nothing is told at once, and what was provisioned before is told at its commit.
    exceeded(
        server.at(V2025).post("/cvms/provision", &provision("third-app")).await,
        "1 more CVMs were asked for; 0 of 1",
    );
    exceeded(server.at(V2025).post("/cvms", &waiting).await, "0 of 1 are left");
    let app = server.at(V2026).get("/cvms/first-app").await.expect(200)["app_id"].clone();
    let app = app.as_str().expect("an app id");
    exceeded(server.at(V2026).post("/cvms/first-app/replicas", &json!({})).await, "0 of 1");
    exceeded(server.at(V2026).post(&format!("/apps/{app}/instances"), &json!({})).await, "0 of 1");
    let resize = |vcpu: i64| json!({ "vcpu": vcpu });
    exceeded(
        server.at(V2026).patch("/cvms/first-app/resources", &resize(3)).await,
        "2 more vCPUs were asked for; 1 of 2",
    );
    exceeded(server.at(V2026).patch("/cvms/first-app", &json!({ "vcpu": 4, "listed": true })).await, "3 more vCPUs");
    assert_eq!(server.number("SELECT COUNT(*) FROM vm").await, 1);
    assert_eq!(server.number("SELECT COUNT(*) FROM operation").await, 1);
    assert_eq!(server.number("SELECT COUNT(*) FROM vm_name WHERE name = 'second-app'").await, 0);
    assert_eq!(server.at(V2026).get("/cvms/first-app").await.expect(200)["listed"], false);
    // The last of it may be had.
    assert!(server.at(V2026).patch("/cvms/first-app/resources", &resize(2)).await.status.is_success());
    server.until_status("first-app", "running").await;
    assert_eq!(left(&server, "vcpu").await, (2, 0));
    // One more slot, and the commit that was refused is accepted as it is, once there are vCPUs too.
    limit(&server, json!({ "vm_slots": 2 })).await;
    exceeded(server.at(V2025).post("/cvms", &waiting).await, "1 more vCPUs were asked for; 0 of 2");
    limit(&server, json!({ "vcpu": null })).await;
    server.at(V2025).post("/cvms", &waiting).await.expect(200);
    server.until_status("second-app", "running").await;
    assert_eq!(left(&server, "vm_slots").await, (2, 0));
}

#[tokio::test]
async fn what_ends_gives_back_exactly_what_it_took() {
    let server = Server::start().await;
    limit(&server, json!({ "vm_slots": 2, "vcpu": 8, "memory_mb": 65536, "disk_gb": 100 })).await;
    server.deploy_running("first-app").await;
    assert_eq!((left(&server, "vm_slots").await, left(&server, "disk_gb").await), ((2, 1), (100, 80)));

    // A create that is undone.
    server.held.store(true, Ordering::Relaxed);
    server.deploy("undone-app").await;
    assert_eq!((left(&server, "vm_slots").await, left(&server, "vcpu").await), ((2, 0), (8, 6)));
    server.at(V2026).post("/cvms/undone-app/operations/cancel", &json!({})).await.expect(200);
    server.held.store(false, Ordering::Relaxed);
    until("the slot is free again", async || left(&server, "vm_slots").await == (2, 1)).await;
    assert_eq!((left(&server, "vcpu").await, left(&server, "disk_gb").await), ((8, 7), (100, 80)));

    // While an update is on its way its larger size counts; one that is taken back gives back the difference, once.
    for (vcpu, during) in [(4, 4), (1, 7)] {
        server.held.store(true, Ordering::Relaxed);
        let asked = json!({ "vcpu": vcpu, "memory": 4096 });
        assert!(server.at(V2026).patch("/cvms/first-app/resources", &asked).await.status.is_success());
        assert_eq!(left(&server, "vcpu").await, (8, during));
        server.at(V2026).post("/cvms/first-app/operations/cancel", &json!({})).await.expect(200);
        server.held.store(false, Ordering::Relaxed);
        server.until_status("first-app", "running").await;
        assert_eq!((left(&server, "vcpu").await, left(&server, "memory_mb").await), ((8, 7), (65536, 63488)));
    }
    // Made larger, and smaller in the same way, it counts as what it is.
    for vcpu in [6, 2] {
        assert!(
            server.at(V2026).patch("/cvms/first-app/resources", &json!({ "vcpu": vcpu })).await.status.is_success()
        );
        server.until_status("first-app", "running").await;
        until("it counts as what it is", async || left(&server, "vcpu").await == (8, 8 - vcpu)).await;
    }
    // Gone is gone, and deleting again gives nothing back again.
    server.at(V2026).delete("/cvms/first-app").await;
    until("all of it is free", async || left(&server, "vm_slots").await == (2, 2)).await;
    assert_eq!(server.at(V2026).delete("/cvms/first-app").await.status, 404);
    assert_eq!(left(&server, "vm_slots").await, (2, 2));
    for (name, all) in [("vcpu", 8), ("memory_mb", 65536), ("disk_gb", 100)] {
        assert_eq!(left(&server, name).await, (all, all), "{name}");
    }
}

/// A larger size with which the app does not come up is taken back by the server itself, and with it what it had reserved.
#[tokio::test]
async fn a_resize_that_fails_by_itself_gives_back_what_it_reserved() {
    let server = Server::start().await;
    server.deploy_running("first-app").await;
    limit(&server, json!({ "vm_slots": 2, "vcpu": 4, "memory_mb": 8192, "disk_gb": 60 })).await;
    let all = async || {
        let mut all = Vec::new();
        for name in ["vm_slots", "vcpu", "memory_mb", "disk_gb"] {
            all.push(left(&server, name).await.1);
        }
        all
    };
    let before = all().await;
    assert_eq!(before, [1, 3, 6144, 40]);
    server.held.store(true, Ordering::Relaxed);
    server.fails_boot.store(true, Ordering::Relaxed);
    let larger = json!({ "vcpu": 4, "memory": 8192, "disk_size": 60, "allow_restart": 1 });
    assert!(server.at(V2026).patch("/cvms/first-app/resources", &larger).await.status.is_success());
    assert_eq!(all().await, [1, 0, 0, 0], "while it is tried it counts");
    exceeded(server.at(V2025).post("/cvms/provision", &provision("second-app")).await, "0 of 4 are left");
    server.held.store(false, Ordering::Relaxed);
    server.until_status("first-app", "running").await;
    let newest =
        server.at(V2026).any("GET", "/holdfast/v1/operations?limit=1", NONE).await.expect(200)["items"][0].clone();
    assert_eq!((&newest["operation_type"], &newest["status"]), (&json!("resize"), &json!("failed")), "{newest}");
    assert_eq!(server.at(V2025).get("/cvms/first-app").await.expect(200)["vcpu"], 1);
    assert_eq!(all().await, before);
    // Whoever waited for the room gets it.
    server.deploy_running("second-app").await;
    assert_eq!(all().await, [0, 2, 4096, 20]);
}

#[tokio::test]
async fn a_limit_below_what_there_is_refuses_growth_and_nothing_else() {
    let server = Server::start().await;
    server.deploy_running("large-app").await;
    assert!(server.at(V2026).patch("/cvms/large-app/resources", &json!({ "vcpu": 6 })).await.status.is_success());
    server.until_status("large-app", "running").await;
    limit(&server, json!({ "vm_slots": 0, "vcpu": 4 })).await;
    assert_eq!((left(&server, "vm_slots").await, left(&server, "vcpu").await), ((0, 0), (4, 0)));
    exceeded(server.at(V2025).post("/cvms/provision", &provision("other-app")).await, "0 of 0 are left");
    exceeded(server.at(V2026).patch("/cvms/large-app/resources", &json!({ "vcpu": 7 })).await, "1 more vCPUs");
    for (method, path, body) in [
        ("POST", "/cvms/large-app/stop", Value::Null),
        ("POST", "/cvms/large-app/start", Value::Null),
        ("POST", "/cvms/large-app/restart", Value::Null),
        ("PATCH", "/cvms/large-app/name", json!({ "name": "small-app" })),
        ("PATCH", "/cvms/small-app/resources", json!({ "memory": 8192, "disk_size": 40 })),
        ("PATCH", "/cvms/small-app/resources", json!({ "vcpu": 5 })),
    ] {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let answer = server.send(server.at(V2026).request(method, path).body(body).expect("a request")).await;
        assert!(answer.status.is_success(), "{method} {path}: {}", answer.text());
        let name = if path.ends_with("name") || path.contains("small") { "small-app" } else { "large-app" };
        let status = if path.ends_with("stop") { "stopped" } else { "running" };
        server.until_status(name, status).await;
    }
    until("it is smaller", async || {
        let told = server.at(V2026).any("GET", DEFAULT, NONE).await.expect(200);
        told["quotas"]["vcpu"] == json!({ "limit": 4, "used": 5, "remaining": 0 })
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_says_what_is_left_and_refuses_alike() {
    let server = Server::start().await;
    server.deploy_running("first-app").await;
    let commit = commit_of(&server, "second-app").await;
    let free =
        server.at(V2026).patch("/cvms/first-app/resources?dry_run=true", &json!({ "vcpu": 2 })).await.expect(200);
    assert_eq!((&free["quota"], &free["quota_after"]), (&json!("unlimited"), &json!({})), "{free}");

    limit(&server, json!({ "vm_slots": 2, "vcpu": 4 })).await;
    let after = |slots: i64, vcpu: i64| json!({ "vm_slots": { "limit": 2, "remaining": slots }, "vcpu": { "limit": 4, "remaining": vcpu } });
    let provisioned = server.at(V2025).post("/cvms/provision?dry_run=true", &provision("third-app")).await.expect(200);
    let create = server.at(V2025).post("/cvms?dry_run=true", &commit).await.expect(200);
    let resize =
        server.at(V2026).patch("/cvms/first-app/resources?dry_run=true", &json!({ "vcpu": 4 })).await.expect(200);
    let delete = server.at(V2026).delete("/cvms/first-app?dry_run=true").await.expect(200);
    let cases = [(&provisioned, after(0, 2)), (&create, after(0, 2)), (&resize, after(1, 0)), (&delete, after(2, 4))];
    for (preview, after) in cases {
        assert_eq!((&preview["quota"], &preview["quota_after"]), (&json!("within"), &after), "{preview}");
    }
    assert_eq!((left(&server, "vm_slots").await, left(&server, "vcpu").await), ((2, 1), (4, 3)), "nothing was taken");

    limit(&server, json!({ "vm_slots": 1 })).await;
    for dry_run in ["", "?dry_run=true"] {
        exceeded(server.at(V2025).post(&format!("/cvms/provision{dry_run}"), &provision("third-app")).await, "0 of 1");
        exceeded(server.at(V2025).post(&format!("/cvms{dry_run}"), &commit).await, "0 of 1");
        let path = format!("/cvms/first-app/resources{dry_run}");
        exceeded(server.at(V2026).patch(&path, &json!({ "vcpu": 5 })).await, "4 more vCPUs were asked for; 3 of 4");
    }
}

#[tokio::test]
async fn an_administrator_sets_and_lifts_them_and_it_is_written_down() {
    let server = Server::start().await;
    let set = change(&server, DEFAULT, &json!({ "vcpu": 4, "disk_gb": 50 }), "q1").await.expect(200);
    assert_eq!((&set["quotas"]["vcpu"]["limit"], &set["quotas"]["disk_gb"]["limit"]), (&json!(4), &json!(50)));
    // Sent again it is the same; what is not named stays, and null lifts.
    let again = change(&server, DEFAULT, &json!({ "vcpu": 4, "disk_gb": 50 }), "q1").await;
    assert!(again.headers.contains_key("idempotency-replayed"));
    assert_eq!(again.expect(200), set);
    server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
    assert_eq!(change(&server, DEFAULT, &json!({ "vcpu": 4, "disk_gb": 50 }), "q1").await.expect(200), set);
    let lifted = limit(&server, json!({ "vcpu": null })).await;
    assert_eq!((&lifted["quotas"]["vcpu"]["limit"], &lifted["quotas"]["disk_gb"]["limit"]), (&Value::Null, &json!(50)));
    let cleared = server.at(V2026).any("DELETE", DEFAULT, NONE).await.expect(200);
    assert_eq!(cleared["quotas"]["disk_gb"]["limit"], Value::Null);
    assert_eq!(server.number("SELECT COUNT(*) FROM workspace_quota").await, 0);

    let log = server.at(V2026).any("GET", "/holdfast/v1/audit-logs?target_type=workspace", NONE).await.expect(200);
    let actions: Vec<_> = log["items"].as_array().expect("items").iter().map(|row| row["action"].clone()).collect();
    assert_eq!(actions, ["quota.clear", "quota.set", "quota.set"], "{log}");

    for (body, field) in [
        (json!({ "vcpu": -1 }), "vcpu"),
        (json!({ "vcpu": 1.5 }), "vcpu"),
        (json!({ "disk_gb": "50" }), "disk_gb"),
        (json!({ "disk_gb": i64::MAX }), "disk_gb"),
        (json!({ "gpus": 1 }), "gpus"),
    ] {
        let refused = change(&server, DEFAULT, &body, "").await.expect(422);
        assert!(refused.to_string().contains(field), "{body}: {refused}");
    }
    for path in ["/holdfast/v1/quotas/nobody", "/holdfast/v1/quotas/wks_nobody", "/holdfast/v1/quotas/1"] {
        assert_eq!(
            change(&server, path, &json!({ "vcpu": 1 }), "").await.expect(404)["error"]["code"],
            "HF-0109",
            "{path}"
        );
    }
    let key = server.stranger("user").await;
    let refused = server.with_key(&key).any("GET", "/holdfast/v1/quotas/elsewhere", NONE).await;
    assert_eq!(refused.status, 403, "a workspace sees its own at its own route only");
}
