//! The operations of a CVM: filters, pages and cursors (seed page 000).

use serde_json::{Value, json};

use crate::support::{Server, V2025, V2026};

async fn server_with_history() -> (Server, Value) {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    for (verb, status) in [("stop", "stopped"), ("start", "running"), ("restart", "running"), ("restart", "running")] {
        server.at(V2026).post_bytes(&format!("/cvms/my-app/{verb}"), Vec::new()).await.expect(200);
        server.until_status("my-app", status).await;
    }
    (server, vm)
}

fn types(page: &Value) -> Vec<&str> {
    let items = page["items"].as_array().expect("items");
    items.iter().map(|item| item["operation_type"].as_str().expect("a type")).collect()
}

#[tokio::test]
async fn an_operation_tells_what_happened() {
    let (server, vm) = server_with_history().await;
    let page = server.at(V2025).get("/cvms/my-app/operations").await.expect(200);
    assert_eq!(types(&page), ["restart", "restart", "power_on", "power_off", "create"]);
    assert_eq!((&page["total"], &page["next_cursor"]), (&json!(5), &Value::Null));
    let create = &page["items"][4];
    assert_eq!(create["status"], "completed");
    assert_eq!(create["target_state"], "running");
    assert_eq!((&create["triggered_by"], &create["triggered_by_username"]), (&json!(1), &json!("admin")));
    assert_eq!(create["error_message"], Value::Null);
    assert_eq!(create["sub_operations"], json!(["reserve", "place", "prepare", "start", "boot", "launch"]));
    assert_eq!(create["instance_name"], "my-app");
    assert_eq!(create["compose_hash"].as_str().map(str::len), Some(64));
    let events = create["events"].as_array().expect("events");
    assert_eq!(events[0]["event_type"], "instance.create.start");
    assert_eq!(events[0]["timestamp"], create["started_at"]);
    let last = events.last().expect("an event");
    assert_eq!((&last["event_type"], &last["state"]), (&json!("instance.create.end"), &json!("running")));
    assert_eq!(last["timestamp"], create["completed_at"]);
    assert!(create["duration_ms"].is_i64());
    let times: Vec<_> = events.iter().map(|e| e["timestamp"].as_str().expect("a time")).collect();
    assert!(times.is_sorted());
    // The integer id of the older versions works as well.
    let same = server.at(V2025).get(&format!("/cvms/{}/operations", vm["id"])).await.expect(200);
    assert_eq!(same["items"], page["items"]);
}

#[tokio::test]
async fn filters_hold_and_bounds_count() {
    let (server, _) = server_with_history().await;
    let list = async |query: &str| server.at(V2026).get(&format!("/cvms/my-app/operations?{query}")).await.expect(200);
    let all = list("").await;
    let at = |i: usize| all["items"][i]["started_at"].as_str().expect("a time").to_owned();
    assert_eq!(types(&list("operation_types=restart").await), ["restart", "restart"]);
    assert_eq!(types(&list("operation_types=power_on&operation_types=create").await), ["power_on", "create"]);
    assert_eq!(types(&list("operation_types=power_on,create").await), ["power_on", "create"]);
    assert_eq!(types(&list("operation_types[]=create").await), ["create"]);
    assert_eq!(types(&list("operation_types=compose_update").await), [""; 0]);
    assert_eq!(types(&list(&format!("start_time={}", at(2))).await).len(), 3);
    assert_eq!(types(&list(&format!("end_time={}", at(2))).await).len(), 3);
    assert_eq!(types(&list(&format!("start_time={0}&end_time={0}", at(2))).await), ["power_on"]);
    assert_eq!(types(&list("start_time=2999-01-01").await), [""; 0]);
    assert_eq!(types(&list("end_time=2999-01-01T00:00:00%2B02:00&operation_types=create").await), ["create"]);
    let filtered = list("operation_types=restart&limit=1").await;
    assert_eq!(filtered["total"], 2);

    for (query, field) in [
        ("limit=501", "limit"),
        ("limit=0", "limit"),
        ("limit=ten", "limit"),
        ("limit=-1", "limit"),
        ("start_time=yesterday", "start_time"),
        ("end_time=2026-13-40", "end_time"),
        ("operation_types=create&operation_types=explode", "operation_types"),
    ] {
        let body = server.at(V2026).get(&format!("/cvms/my-app/operations?{query}")).await.expect(422);
        assert_eq!(body["detail"][0]["loc"][0], "query", "{query}");
        assert_eq!(body["detail"][0]["loc"][1], field, "{query}");
    }
    assert_eq!(server.at(V2026).get("/cvms/my-app/operations?limit=500").await.status, 200);
}

#[tokio::test]
async fn pages_follow_one_another() {
    let (server, _) = server_with_history().await;
    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let next = cursor.as_ref().map(|c| format!("&cursor={c}")).unwrap_or_default();
        let page = server.at(V2026).get(&format!("/cvms/my-app/operations?limit=2{next}")).await.expect(200);
        seen.extend(types(&page).into_iter().map(str::to_owned));
        assert_eq!(page["total"], 5);
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["restart", "restart", "power_on", "power_off", "create"]);
}

#[tokio::test]
async fn cursors_that_were_tampered_with() {
    let (server, _) = server_with_history().await;
    server.deploy_running("other-app").await;
    let page = server.at(V2026).get("/cvms/my-app/operations?limit=1").await.expect(200);
    let cursor = page["next_cursor"].as_str().expect("a cursor").to_owned();
    let mut bent = cursor.clone().into_bytes();
    bent[3] = if bent[3] == b'A' { b'B' } else { b'A' };
    let bent = String::from_utf8(bent).expect("text");
    let cases = [
        format!("/cvms/my-app/operations?cursor={bent}"),
        format!("/cvms/my-app/operations?cursor={}", &cursor[..10]),
        "/cvms/my-app/operations?cursor=x".to_owned(),
        // A cursor of other filters, and of another CVM.
        format!("/cvms/my-app/operations?cursor={cursor}&operation_types=restart"),
        format!("/cvms/other-app/operations?cursor={cursor}"),
    ];
    for path in cases {
        assert_eq!(server.at(V2026).get(&path).await.expect(400)["error_code"], "HF-0008", "{path}");
    }
    assert_eq!(server.at(V2026).get(&format!("/cvms/my-app/operations?limit=3&cursor={cursor}")).await.status, 200);
}

#[tokio::test]
async fn operations_outlive_their_cvm() {
    let server = Server::start().await;
    let vm = server.deploy_running("short-lived").await;
    let hashid = server.at(V2026).get("/cvms/short-lived").await.expect(200)["id"].as_str().expect("an id").to_owned();
    assert_eq!(server.at(V2026).delete("/cvms/short-lived").await.status, 204);
    crate::support::until("it is gone", async || server.at(V2026).get("/cvms/short-lived").await.status == 404).await;
    let uuid = vm["vm_uuid"].as_str().expect("a UUID").to_owned();
    for id in [uuid.clone(), uuid.replace('-', ""), hashid, vm["id"].to_string()] {
        let page = server.at(V2026).get(&format!("/cvms/{id}/operations")).await.expect(200);
        assert_eq!(types(&page), ["delete", "create"], "{id}");
        assert_eq!(server.at(V2026).get(&format!("/cvms/{id}")).await.status, 404);
    }
    for id in ["short-lived".to_owned(), format!("app_{}", vm["app_id"].as_str().expect("an app id"))] {
        assert_eq!(server.at(V2026).get(&format!("/cvms/{id}/operations")).await.status, 404, "{id}");
    }
    // Its name is free again, and the app has no CVMs but is known.
    server.deploy_running("short-lived").await;
    let app = format!("/apps/{}", vm["app_id"].as_str().expect("an app id"));
    assert_eq!(server.at(V2026).get(&app).await.expect(200)["cvm_count"], 0);
    assert_eq!(server.at(V2026).get(&format!("{app}/cvms")).await.expect(200), json!([]));
}
