//! The life of a CVM besides start and stop: shutdown and its settings, restart, stopping many, deletion at a time, and
//! instance ids.

use std::sync::atomic::Ordering;

use axum::body::Body;
use holdfast_model::Timestamp;
use holdfast_model::hashid::{Prefix, encode};
use serde_json::{Value, json};

use crate::support::{Answer, NEWEST, Server, V_STRING_IDS, V2025, V2026, until};

const VERSIONS: [&str; 6] = [V2025, V2026, V_STRING_IDS, NEWEST, "LATEST", "2031-01-01"];
const NONE: (&str, &str) = ("", "");

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// A request without a body, as the clients send it.
async fn bare(server: &Server, path: &str) -> Answer {
    server.at(V2026).post_bytes(path, Vec::new()).await
}

/// Operations of a CVM, newest first, with their steps and errors.
async fn operations(server: &Server, cvm: &str) -> Vec<Value> {
    let page = server.at(V2026).get(&format!("/cvms/{cvm}/operations")).await.expect(200);
    let mut operations = Vec::new();
    for item in page["items"].as_array().expect("items") {
        let path = format!("/holdfast/v1/operations/{}", text(&item["correlation_id"]));
        operations.push(server.at(V2026).any("GET", &path, NONE).await.expect(200));
    }
    operations
}

/// The newest operation, when it is over.
async fn over(server: &Server, cvm: &str) -> Value {
    until("the operation is over", async || {
        operations(server, cvm).await.first().is_some_and(|operation| !operation["completed_at"].is_null())
    })
    .await;
    operations(server, cvm).await.remove(0)
}

fn types(operations: &[Value]) -> Vec<&str> {
    operations.iter().map(|operation| text(&operation["operation_type"])).collect()
}

/// How the node was last told to stop the CVM.
async fn stop_mode(server: &Server) -> String {
    let tables = server.tables().await;
    let row = tables.lines().find(|line| line.starts_with("vm_desired:")).expect("desired state");
    row.split(" | ").find(|column| column.contains("mode")).expect("a stop mode").to_owned()
}

async fn audit(server: &Server, action: &str) -> Vec<Value> {
    let path = format!("/holdfast/v1/audit-logs?action={action}");
    let page = server.at(V2026).any("GET", &path, NONE).await.expect(200);
    page["items"].as_array().expect("items").clone()
}

async fn with_idempotency(server: &Server, method: &str, path: &str, key: &str, body: &Value) -> Answer {
    let request = server.at(V2026).request(method, path).header("idempotency-key", key);
    server.send(request.body(Body::from(body.to_string())).expect("a request")).await
}

#[tokio::test]
async fn a_shutdown_asks_the_guest_and_is_one_operation() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    for version in VERSIONS {
        let answer = server.at(version).post_bytes("/cvms/my-app/shutdown", Vec::new()).await.expect(200);
        let id = match version {
            V2025 | V2026 => vm["id"].clone(),
            _ => json!(encode(Prefix::Cvm, vm["id"].as_i64().expect("a key"))),
        };
        assert_eq!((&answer["status"], &answer["id"]), (&json!("shutting_down"), &id), "{version}");
        server.until_status("my-app", "stopped").await;
        let done = over(&server, "my-app").await;
        assert_eq!((&done["operation_type"], &done["status"]), (&json!("shutdown"), &json!("done")), "{done:#}");
        assert_eq!(done["changes"], json!({ "status": { "from": "running", "to": "stopped" } }));
        assert_eq!(stop_mode(&server).await, r#"{"mode":"asked","grace_s":60}"#);
        let refused = bare(&server, "/cvms/my-app/shutdown").await.expect(409);
        assert!(text(&refused["message"]).contains("needs it to be running"), "{refused}");
        bare(&server, "/cvms/my-app/start").await.expect(200);
        server.until_status("my-app", "running").await;
    }
    assert_eq!(audit(&server, "vm.shutdown").await.len(), VERSIONS.len());
    // While it runs, nothing else does; and it is done once, however often it is sent.
    server.held.store(true, Ordering::Relaxed);
    let first = with_idempotency(&server, "POST", "/cvms/my-app/shutdown", "s1", &json!({})).await.expect(200);
    let again = with_idempotency(&server, "POST", "/cvms/my-app/shutdown", "s1", &json!({})).await.expect(200);
    assert_eq!(first, again);
    assert_eq!(bare(&server, "/cvms/my-app/shutdown").await.status, 409);
    assert_eq!(bare(&server, "/cvms/my-app/restart").await.status, 409);
    let state = server.at(V2026).get("/cvms/my-app").await.expect(200);
    assert_eq!((&state["status"], &state["progress"]["target"]), (&json!("shutting_down"), &json!("stopped")));
    server.held.store(false, Ordering::Relaxed);
    server.until_status("my-app", "stopped").await;
    assert_eq!(types(&operations(&server, "my-app").await)[0..2], ["shutdown", "power_on"]);
}

#[tokio::test]
async fn a_guest_that_does_not_power_off_fails_the_shutdown_and_runs_on() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    server.deaf.store(true, Ordering::Relaxed);
    bare(&server, "/cvms/my-app/shutdown").await.expect(200);
    let failed = over(&server, "my-app").await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("HF-0208")), "{failed:#}");
    server.until_status("my-app", "running").await;
    // What the settings allow is done to it.
    let answer = server.at(V2026).patch("/cvms/my-app", &json!({ "allow_force_stop": true })).await.expect(202);
    assert_eq!(answer["restarts"], false);
    over(&server, "my-app").await;
    bare(&server, "/cvms/my-app/shutdown").await.expect(200);
    server.until_status("my-app", "stopped").await;
    assert_eq!(stop_mode(&server).await, r#"{"mode":"graceful","grace_s":60}"#);
}

#[tokio::test]
async fn a_shutdown_can_be_cancelled_while_the_guest_is_being_asked() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    server.held.store(true, Ordering::Relaxed);
    bare(&server, "/cvms/my-app/shutdown").await.expect(200);
    bare(&server, "/cvms/my-app/operations/cancel").await.expect(200);
    server.held.store(false, Ordering::Relaxed);
    let cancelled = over(&server, "my-app").await;
    assert_eq!(cancelled["status"], "cancelled", "{cancelled:#}");
    server.until_status("my-app", "running").await;
}

#[tokio::test]
async fn the_settings_of_a_shutdown_are_part_of_a_revision() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let body = json!({ "shutdown_timeout": 30, "allow_force_stop": 1 });
    let answer = server.at(V2026).patch("/cvms/my-app", &body).await.expect(202);
    assert_eq!(answer["restarts"], false);
    let done = over(&server, "my-app").await;
    assert_eq!((&done["operation_type"], &done["status"]), (&json!("update"), &json!("done")));
    assert_eq!(done["changes"]["shutdown_timeout"]["to"], 30);
    assert_eq!(done["changes"]["allow_force_stop"], json!({ "from": false, "to": true }));
    // One alone leaves the other as it is; the same again changes nothing.
    server.at(V2026).patch("/cvms/my-app", &json!({ "shutdown_timeout": 1200 })).await.expect(202);
    let done = over(&server, "my-app").await;
    assert_eq!(done["changes"], json!({ "shutdown_timeout": { "from": 30, "to": 1200 } }));
    server.at(V2026).patch("/cvms/my-app", &json!({ "shutdown_timeout": 1200.0 })).await.expect(202);
    assert_eq!(over(&server, "my-app").await["changes"], json!({}));
    for wrong in [json!({ "shutdown_timeout": 9 }), json!({ "shutdown_timeout": 1201 })] {
        server.at(V2026).patch("/cvms/my-app", &wrong).await.expect(422);
    }
    // A change that starts the CVM anew gives the guest the same time.
    server.at(V2026).patch("/cvms/my-app/resources", &json!({ "vcpu": 2 })).await.expect(202);
    server.until_status("my-app", "running").await;
    assert_eq!(stop_mode(&server).await, r#"{"mode":"graceful","grace_s":1200}"#);
    bare(&server, "/cvms/my-app/shutdown").await.expect(200);
    server.until_status("my-app", "stopped").await;
    assert_eq!(stop_mode(&server).await, r#"{"mode":"graceful","grace_s":1200}"#);
}

#[tokio::test]
async fn a_restart_gives_the_guest_time_unless_it_is_forced() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let graceful = r#"{"mode":"graceful","grace_s":10}"#;
    for (body, mode) in [("", graceful), (r#"{"force":false}"#, graceful), (r#"{"force":true}"#, r#"{"mode":"hard"}"#)]
    {
        let answer = server.at(V2026).post_bytes("/cvms/my-app/restart", body.into()).await.expect(200);
        assert_eq!(answer["status"], "restarting", "{body}");
        server.until_status("my-app", "running").await;
        assert_eq!(stop_mode(&server).await, mode, "{body}");
    }
    assert_eq!(types(&operations(&server, "my-app").await), ["restart", "restart", "restart", "create"]);
}

#[tokio::test]
async fn many_are_stopped_and_one_bad_id_stops_none() {
    let server = Server::start().await;
    let mut vms = Vec::new();
    for name in ["first-app", "second-app", "stopped-app", "busy-app"] {
        vms.push(server.deploy_running(name).await);
    }
    bare(&server, "/cvms/stopped-app/stop").await.expect(200);
    server.until_status("stopped-app", "stopped").await;
    server.held.store(true, Ordering::Relaxed);
    bare(&server, "/cvms/busy-app/restart").await.expect(200);
    let hashid = encode(Prefix::Cvm, vms[0]["id"].as_i64().expect("a key"));
    let ids = [&hashid, "cvm_nothing", text(&vms[1]["vm_uuid"]), "stopped-app", "busy-app", "first-app"];
    let body = json!({ "cvm_ids": ids });
    let answer = with_idempotency(&server, "POST", "/cvms/batch-stop", "b1", &body).await.expect(200);
    assert_eq!((&answer["total"], &answer["stopped"], &answer["skipped"]), (&json!(6), &json!(2), &json!(2)));
    let errors = answer["errors"].as_array().expect("errors");
    assert_eq!(errors[0], json!({ "cvm_id": "cvm_nothing", "error": "The requested CVM was not found." }));
    assert_eq!((&errors[1]["cvm_id"], errors.len()), (&json!("busy-app"), 2));
    assert!(text(&errors[1]["error"]).contains("restart"), "{answer}");
    let again = with_idempotency(&server, "POST", "/cvms/batch-stop", "b1", &body).await.expect(200);
    assert_eq!(again, answer);
    // The server ended before it kept the answer: nobody is stopped twice, and those that it stopped are told.
    server.held.store(false, Ordering::Relaxed);
    for name in ["first-app", "second-app"] {
        server.until_status(name, "stopped").await;
        bare(&server, &format!("/cvms/{name}/start")).await.expect(200);
        server.until_status(name, "running").await;
    }
    server.until_status("busy-app", "running").await;
    server.sql("UPDATE idempotency_key SET status_code = 0, response = '' WHERE key = 'b1'").await;
    let body = body.clone();
    let again = with_idempotency(&server, "POST", "/cvms/batch-stop", "b1", &body).await.expect(200);
    assert_eq!(again["total"], 6);
    server.until_status("busy-app", "stopped").await;
    for name in ["first-app", "second-app"] {
        server.until_status(name, "running").await;
        assert_eq!(types(&operations(&server, name).await), ["power_on", "power_off", "create"], "{name}");
    }
    assert_eq!(audit(&server, "vm.power_off").await.len(), 4);

    assert_eq!(
        server.at(V2025).post("/cvms/batch-stop", &json!({ "cvm_ids": [] })).await.expect(200),
        json!({ "total": 0, "stopped": 0, "skipped": 0, "errors": [] })
    );
    let many: Vec<_> = (0..51).map(|n| n.to_string()).collect();
    server.at(V2025).post("/cvms/batch-stop", &json!({ "cvm_ids": many })).await.expect(422);
    bare(&server, "/cvms/batch-stop").await.expect(422);
    bare(&server, "/cvms/batch-stop?dry_run=true").await.expect(400);
}

#[tokio::test]
async fn another_workspace_is_not_in_a_batch() {
    let server = Server::start().await;
    server.deploy_running("hidden-app").await;
    let key = server.stranger("user").await;
    let stranger = server.with_key(&key);
    let answer = stranger.post("/cvms/batch-stop", &json!({ "cvm_ids": ["hidden-app", "1"] })).await.expect(200);
    assert_eq!((&answer["total"], &answer["stopped"]), (&json!(2), &json!(0)));
    let errors = answer["errors"].as_array().expect("errors").iter();
    assert!(errors.clone().all(|entry| entry["error"] == "The requested CVM was not found."), "{answer}");
    assert_eq!(stranger.patch("/cvms/instance-ids", &json!({})).await.expect(200)["total"], 0);
    assert_eq!(stranger.patch("/cvms/instance-ids", &json!({ "cvm_ids": ["1"] })).await.status, 422);
    assert_eq!(server.at(V2026).get("/cvms/hidden-app").await.expect(200)["status"], "running");
}

/// Lets the time of every scheduled delete have come.
async fn time_comes(server: &Server) {
    server.sql("UPDATE vm SET scheduled_delete_at = 1 WHERE scheduled_delete_at IS NOT NULL").await;
}

fn tomorrow(server: &Server) -> String {
    Timestamp(server.control.now().micros() + 86_400_000_000).to_string()
}

#[tokio::test]
async fn a_deletion_is_scheduled_shown_and_cancelled() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let path = "/cvms/my-app/scheduled-delete";
    let at = tomorrow(&server);
    let shown = async || server.at(V2025).get("/cvms/my-app").await.expect(200)["scheduled_delete_at"].clone();
    assert_eq!(shown().await, Value::Null);
    let dry = server.at(V2026).patch(&format!("{path}?dry_run=true"), &json!({ "scheduled_delete_at": at })).await;
    assert_eq!(dry.expect(200)["changes"]["scheduled_delete_at"]["to"], at);
    assert_eq!(shown().await, Value::Null);
    for version in VERSIONS {
        let set = server.at(version).patch(path, &json!({ "scheduled_delete_at": at })).await.expect(200);
        assert_eq!((&set["status"], set["id"].is_i64()), (&json!("running"), [V2025, V2026].contains(&version)));
        assert_eq!(shown().await, at, "{version}");
        // Null, nothing at all, and no body: at no time.
        for none in [r#"{"scheduled_delete_at":null}"#, "{}", ""] {
            server.at(version).patch(path, &json!({ "scheduled_delete_at": at })).await.expect(200);
            server.at(version).patch_bytes(path, none.into()).await.expect(200);
            assert_eq!(shown().await, Value::Null, "{version} {none}");
        }
    }
    // Without a zone it is UTC.
    let bare_time = at.trim_end_matches('Z');
    server.at(V2026).patch(path, &json!({ "scheduled_delete_at": bare_time })).await.expect(200);
    assert_eq!(shown().await, at);
    for wrong in [json!("2020-01-01T00:00:00Z"), json!("tomorrow"), json!("")] {
        let refused = server.at(V2026).patch(path, &json!({ "scheduled_delete_at": wrong })).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", "scheduled_delete_at"]), "{refused}");
    }
    assert_eq!(shown().await, at, "a refusal changes nothing");
    server.at(V2026).patch(path, &Value::Null).await.expect(422);
    server.at(V2026).patch(path, &json!({ "scheduled_delete_at": null })).await.expect(200);
    assert_eq!(server.control.scheduled_deletes(10).await.expect("a look"), 0);
    let set = audit(&server, "vm.scheduled_delete.set").await.len();
    assert_eq!((set, audit(&server, "vm.scheduled_delete.cancel").await.len()), (25, 19));
    assert_eq!(types(&operations(&server, "my-app").await), ["create"]);
}

#[tokio::test]
async fn a_scheduled_delete_happens_once_and_names_who_asked_for_it() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    server.deploy_running("other-app").await;
    let body = json!({ "scheduled_delete_at": tomorrow(&server) });
    let request = server.at(V2026).request("PATCH", "/cvms/my-app/scheduled-delete").header("x-request-id", "the-wish");
    server.send(request.body(Body::from(body.to_string())).expect("a request")).await.expect(200);
    time_comes(&server).await;
    let looks = (server.control.scheduled_deletes(10), server.control.scheduled_deletes(10));
    let (first, second) = tokio::join!(looks.0, looks.1);
    assert!(first.is_ok() && second.is_ok());
    until("it is gone", async || server.at(V2026).get("/cvms/my-app").await.status == 404).await;
    assert_eq!(server.control.scheduled_deletes(10).await.expect("a look"), 0);
    let uuid = text(&vm["vm_uuid"]);
    let all = operations(&server, uuid).await;
    assert_eq!(types(&all), ["delete", "create"]);
    assert_eq!((&all[0]["status"], &all[0]["actor"]["username"]), (&json!("done"), &json!("admin")), "{:#}", all[0]);
    let (wish, deed) = (audit(&server, "vm.scheduled_delete.set").await, audit(&server, "vm.delete").await);
    assert_eq!((wish.len(), deed.len()), (1, 1));
    assert_eq!(deed[0]["actor"], wish[0]["actor"]);
    assert_eq!((&deed[0]["path"], &deed[0]["method"]), (&wish[0]["path"], &json!("PATCH")));
    assert_eq!((text(&deed[0]["client_ip"]), text(&deed[0]["target"]["id"])), ("", uuid));
    assert!(text(&deed[0]["user_agent"]).contains("scheduled-delete"), "{:#}", deed[0]);
    let path = "/holdfast/v1/audit-logs?request_id=the-wish";
    let both = server.at(V2026).any("GET", path, NONE).await.expect(200);
    assert_eq!(both["items"].as_array().map(Vec::len), Some(2), "{both:#}");
    assert_eq!(server.at(V2026).get("/cvms/other-app").await.expect(200)["status"], "running");
}

#[tokio::test]
async fn a_busy_cvm_is_deleted_when_it_is_free_and_one_that_goes_anyway_not_twice() {
    let server = Server::start().await;
    let mut uuids = Vec::new();
    for name in ["busy-app", "going-app"] {
        let vm = server.deploy_running(name).await;
        uuids.push(text(&vm["vm_uuid"]).to_owned());
        let body = json!({ "scheduled_delete_at": tomorrow(&server) });
        server.at(V2026).patch(&format!("/cvms/{name}/scheduled-delete"), &body).await.expect(200);
    }
    server.held.store(true, Ordering::Relaxed);
    bare(&server, "/cvms/busy-app/restart").await.expect(200);
    assert_eq!(server.at(V2026).delete("/cvms/going-app").await.status, 204);
    time_comes(&server).await;
    assert_eq!(server.control.scheduled_deletes(10).await.expect("a look"), 2);
    assert_eq!(server.control.scheduled_deletes(10).await.expect("a look"), 0);
    let state = server.at(V2026).get("/cvms/busy-app").await.expect(200);
    assert_eq!(state["status"], "restarting", "its restart goes on");
    server.held.store(false, Ordering::Relaxed);
    for name in ["busy-app", "going-app"] {
        until("it is gone", async || server.at(V2026).get(&format!("/cvms/{name}")).await.status == 404).await;
    }
    let busy = operations(&server, &uuids[0]).await;
    assert_eq!(types(&busy), ["delete", "restart", "create"]);
    assert!(busy.iter().all(|operation| operation["status"] == "done"), "{busy:#?}");
    assert_eq!(types(&operations(&server, &uuids[1]).await), ["delete", "create"]);
}

#[tokio::test]
async fn an_instance_id_is_given_once_and_stays() {
    let server = Server::start().await;
    let first = server.deploy_running("first-app").await;
    server.deploy_running("second-app").await;
    bare(&server, "/cvms/second-app/stop").await.expect(200);
    server.until_status("second-app", "stopped").await;
    for version in VERSIONS {
        let id = match version {
            V2025 | V2026 => first["id"].clone(),
            _ => json!(encode(Prefix::Cvm, first["id"].as_i64().expect("a key"))),
        };
        for body in ["", "{}", r#"{"overwrite":true,"dry_run":false}"#, r#"{"overwrite":false,"dry_run":true}"#] {
            let answer = server.at(version).patch_bytes("/cvms/first-app/instance-id", body.into()).await.expect(200);
            assert_eq!(answer["cvm_id"], id, "{version}");
            assert_eq!((&answer["status"], &answer["identifier"]), (&json!("unchanged"), &first["vm_uuid"]));
            assert_eq!(answer["old_instance_id"], first["instance_id"]);
            assert_eq!(answer["new_instance_id"], first["instance_id"]);
            assert_eq!((&answer["source"], &answer["verified_with_gateway"]), (&json!("none"), &json!(false)));
        }
        let count = async |body: Value| {
            let answer = server.at(version).patch("/cvms/instance-ids", &body).await.expect(200);
            let counts = ["total", "scanned", "unchanged", "skipped"].map(|field| answer[field].as_i64().expect(field));
            assert_eq!(
                (&answer["updated"], &answer["conflicts"], &answer["errors"]),
                (&json!(0), &json!(0), &json!(0))
            );
            assert_eq!(answer["items"].as_array().map(Vec::len), answer["scanned"].as_u64().map(|n| n as usize));
            counts
        };
        assert_eq!(count(json!({})).await, [2, 2, 0, 2], "all of them have one");
        assert_eq!(count(json!({ "missing_only": false })).await, [2, 2, 1, 1], "one runs");
        assert_eq!(
            count(json!({ "missing_only": false, "running_only": false, "overwrite": true })).await,
            [2, 2, 2, 0]
        );
        assert_eq!(count(json!({ "missing_only": false, "running_only": false, "limit": 1 })).await, [2, 1, 1, 0]);
        assert_eq!(count(json!({ "cvm_ids": ["first-app"], "missing_only": false })).await, [1, 1, 1, 0]);
        assert_eq!(count(json!({ "cvm_ids": [], "dry_run": true })).await, [0, 0, 0, 0]);
    }
    for wrong in [json!({ "limit": 0 }), json!({ "limit": 501 }), json!({ "running_only": "yes" })] {
        server.at(V2026).patch("/cvms/instance-ids", &wrong).await.expect(422);
    }
    let unknown = server.at(V2026).patch("/cvms/instance-ids", &json!({ "cvm_ids": ["nothing"] })).await.expect(422);
    assert_eq!(unknown["detail"][0]["loc"], json!(["body", "cvm_ids"]));
    assert_eq!(types(&operations(&server, "first-app").await), ["create"]);
}
