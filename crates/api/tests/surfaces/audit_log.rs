//! The audit log: what was accepted and what was refused, on both surfaces that show it.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::ConnectInfo;
use serde_json::{Value, json};

use crate::lists::second_member;
use crate::support::{Server, V2026};

const NONE: (&str, &str) = ("", "");

/// A request of the Phala surface from an address, with a user agent.
async fn ask(server: &Server, key: &str, method: &str, path: &str) -> u16 {
    let from: SocketAddr = "192.0.2.7:4000".parse().expect("an address");
    let request = server.with_key(key).request(method, path);
    let request = request.header("user-agent", "tester/1").extension(ConnectInfo(from));
    server.send(request.body(Body::empty()).expect("a request")).await.status.as_u16()
}

async fn ours(server: &Server, query: &str) -> Value {
    server.at(V2026).any("GET", &format!("/holdfast/v1/audit-logs?{query}"), NONE).await.expect(200)
}

async fn nirvana(server: &Server, query: &str) -> Value {
    server.at(V2026).any("GET", &format!("/v1/audit_logs?{query}"), NONE).await.expect(200)
}

/// Entries as `STATUS action`.
fn shown(page: &Value) -> Vec<String> {
    let of = |item: &Value| format!("{} {}", item["status_code"], item["action"].as_str().expect("an action"));
    page["items"].as_array().expect("items").iter().map(of).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Newest first.
const ALL: [&str; 6] = [
    "403 request.refused",
    "404 request.refused",
    "204 vm.delete",
    "409 request.refused",
    "200 vm.power_off",
    "200 vm.create",
];

/// A server whose audit log ends with [`ALL`], and the key of a viewer. Before it are the provision and the like.
async fn server_with_log() -> (Server, String) {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    assert_eq!(ask(&server, &server.key, "POST", "/cvms/my-app/stop").await, 200);
    server.until_status("my-app", "stopped").await;
    assert_eq!(ask(&server, &server.key, "POST", "/cvms/my-app/stop").await, 409);
    assert_eq!(ask(&server, &server.key, "DELETE", "/cvms/my-app").await, 204);
    assert_eq!(ask(&server, &server.key, "POST", "/cvms/nothing/start").await, 404);
    let viewer = second_member(&server).await;
    server.sql("UPDATE workspace_member SET role = 'viewer' WHERE user_id = 2").await;
    assert_eq!(ask(&server, &viewer, "POST", "/cvms/my-app/start").await, 403);
    (server, viewer)
}

#[tokio::test]
async fn every_mutation_is_there_whether_accepted_or_refused() {
    let (server, viewer) = server_with_log().await;
    // Nobody is not in it, and neither is what only reads.
    assert_eq!(ask(&server, "phak_wrong", "POST", "/cvms/my-app/start").await, 401);
    assert_eq!(ask(&server, &viewer, "GET", "/cvms/nothing").await, 404);
    let page = ours(&server, "").await;
    assert_eq!(shown(&page)[..6], ALL);
    assert_eq!(page["total_is_estimate"], false);
    let (refused, stop) = (&page["items"][0], &page["items"][4]);
    let operations = server.at(V2026).any("GET", "/holdfast/v1/operations?operation_type=power_off", NONE).await;
    let operation = operations.expect(200)["items"][0].clone();
    assert_eq!((&stop["method"], &stop["path"]), (&json!("POST"), &json!("/api/v1/cvms/my-app/stop")));
    assert_eq!((&stop["client_ip"], &stop["user_agent"]), (&json!("192.0.2.7"), &json!("tester/1")));
    assert_eq!((&stop["actor"]["name"], &stop["actor"]["type"]), (&json!("admin"), &json!("user")));
    assert_eq!(stop["target"], json!({ "id": operation["resource"]["id"], "type": "vm" }));
    assert_eq!((&stop["operation_id"], &stop["request_id"]), (&operation["id"], &operation["request_id"]));
    for id in [&stop["id"], &stop["actor"]["id"], &stop["api_key_id"]] {
        assert!(uuid::Uuid::try_parse(id.as_str().expect("an id")).is_ok(), "{id}");
    }
    assert_eq!((&refused["target"], &refused["operation_id"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&refused["actor"]["name"], &refused["path"]),
        (&json!("stranger"), &json!("/api/v1/cvms/my-app/start"))
    );
    assert_ne!(refused["actor"]["id"], stop["actor"]["id"]);

    // Nirvana's clients get exactly the fields of their contract.
    let theirs = nirvana(&server, "limit=100").await;
    assert_eq!(shown(&theirs), shown(&page));
    let entry = theirs["items"][4].clone();
    let mut fields: Vec<&str> = entry.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.sort_unstable();
    let contract =
        ["action", "actor", "client_ip", "created_at", "id", "method", "path", "status_code", "target", "user_agent"];
    assert_eq!(fields, contract);
    for field in contract {
        assert_eq!(entry[field], stop[field], "{field}");
    }
    let id = text(&stop["id"]);
    let single = server.at(V2026).any("GET", &format!("/v1/audit_logs/{id}"), NONE).await.expect(200);
    assert_eq!(single, entry);
    let single = server.at(V2026).any("GET", &format!("/holdfast/v1/audit-logs/{id}"), NONE).await.expect(200);
    assert_eq!(&single, stop);
}

#[tokio::test]
async fn filters_and_orders() {
    let (server, _) = server_with_log().await;
    let all = ours(&server, "").await;
    let item = |i: usize| all["items"][i].clone();
    let at = |i: usize| text(&item(i)["created_at"]);
    let (operation, request) = (text(&item(4)["operation_id"]), text(&item(3)["request_id"]));
    let (stranger, target) = (text(&item(0)["actor"]["id"]), text(&item(4)["target"]["id"]));
    let both = [
        ("action=vm.delete", &[2][..]),
        ("action=request.refused", &[0, 1, 3]),
        (&format!("actor_id={stranger}"), &[0]),
        ("actor_type=api_key", &[]),
        ("actor_type=user&status_code_min=400", &[0, 1, 3]),
        ("client_ip=192.0.2.7", &[0, 1, 2, 3, 4]),
        ("client_ip=192.0.2.8", &[]),
        (&format!("created_at_min={}", at(2)), &[0, 1, 2]),
        (&format!("created_at_min={}&created_at_max={}", at(3), at(1)), &[1, 2, 3]),
        ("method=delete", &[2]),
        ("path=my-app/st", &[0, 3, 4]),
        ("path=my-app/st&status_code_max=299", &[4]),
        ("status_code_min=404&status_code_max=404", &[1]),
        ("status_code_min=403", &[0, 1, 3]),
        ("status_code_min=500", &[]),
        ("status_code_min=201&status_code_max=299", &[2]),
        (&format!("target_id={target}"), &[2, 4, 5]),
        (&format!("target_id={target}&target_type=vm&action=vm.create"), &[5]),
        (&format!("target_id={target}&target_type=volume"), &[]),
        ("status_code_min=400&sort=status_code:asc", &[0, 1, 3]),
        ("status_code_min=400&sort=status_code:desc", &[3, 1, 0]),
        ("status_code_min=400&sort=created_at:asc", &[3, 1, 0]),
        ("client_ip=192.0.2.7&sort=status_code:desc,created_at:asc", &[3, 1, 0, 2, 4]),
        ("client_ip=192.0.2.7&sort=status_code:asc", &[4, 2, 0, 1, 3]),
    ];
    for (query, expected) in both {
        let expected: Vec<_> = expected.iter().map(|i| text(&item(*i)["id"])).collect();
        for page in [ours(&server, query).await, nirvana(&server, query).await] {
            let ids: Vec<_> = page["items"].as_array().expect("items").iter().map(|i| text(&i["id"])).collect();
            assert_eq!(ids, expected, "{query}");
            let total = page["total"].as_i64().or(page["pagination"]["total_count"].as_i64());
            assert_eq!(total, i64::try_from(expected.len()).ok(), "{query}");
        }
    }
    assert_eq!(shown(&ours(&server, &format!("operation_id={operation}")).await), ["200 vm.power_off"]);
    assert_eq!(shown(&ours(&server, &format!("request_id={request}")).await), ["409 request.refused"]);

    for (query, field) in [
        ("actor_id=1", "actor_id"),
        ("actor_type=node", "actor_type"),
        ("client_ip=here", "client_ip"),
        ("created_at_min=now", "created_at_min"),
        ("method=LOOK", "method"),
        ("status_code_min=99", "status_code_min"),
        ("status_code_max=x", "status_code_max"),
        ("sort=path:asc", "sort"),
        ("sort=status_code:asc,status_code:asc", "sort"),
        ("limit=0", "limit"),
        ("operation_id=1", "operation_id"),
    ] {
        let path = format!("/holdfast/v1/audit-logs?{query}");
        let body = server.at(V2026).any("GET", &path, NONE).await.expect(422);
        assert_eq!(body["error"]["details"][0]["loc"], json!(["query", field]), "{query}");
    }
}

#[tokio::test]
async fn pages_follow_one_another_while_more_is_written() {
    let (server, _) = server_with_log().await;
    for sort in ["created_at:desc", "created_at:asc", "status_code:desc", "status_code:asc,created_at:desc"] {
        let query = format!("client_ip=192.0.2.7&sort={sort}");
        let ids = |page: &Value| -> Vec<String> {
            page["items"].as_array().expect("items").iter().map(|i| text(&i["id"])).collect()
        };
        let expected = ids(&ours(&server, &query).await);
        let first = ours(&server, &format!("{query}&limit=2")).await;
        let cursor = text(&first["next_cursor"]);
        // From elsewhere, so it is on no page of this list.
        server.at(V2026).post_bytes("/cvms/nothing/stop", Vec::new()).await.expect(404);
        let second = ours(&server, &format!("{query}&limit=2&cursor={cursor}")).await;
        assert_eq!([ids(&first), ids(&second)].concat(), expected[..4], "{sort}");
        let cursor = text(&second["previous_cursor"]);
        let back = ours(&server, &format!("{query}&limit=2&cursor={cursor}")).await;
        assert_eq!(ids(&back), ids(&first), "{sort}");
        let other = format!("/holdfast/v1/audit-logs?client_ip=192.0.2.8&sort={sort}&cursor={cursor}");
        assert_eq!(server.at(V2026).any("GET", &other, NONE).await.expect(400)["error"]["code"], "HF-0008");
        let other = format!("/v1/audit_logs?{query}&cursor={cursor}");
        assert_eq!(server.at(V2026).any("GET", &other, NONE).await.expect(400)["code"], "HF-0008");
    }
}

#[tokio::test]
async fn who_may_read_it() {
    let (server, viewer) = server_with_log().await;
    let id = text(&ours(&server, "limit=1").await["items"][0]["id"]);
    let paths = ["/v1/audit_logs".to_owned(), format!("/v1/audit_logs/{id}")];
    let paths = paths.iter().flat_map(|path| {
        let ours = path.replace("/v1/audit_logs", "/holdfast/v1/audit-logs");
        [path.clone(), ours]
    });
    let paths: Vec<String> = paths.collect();
    for path in &paths {
        server.without_key().any("GET", path, NONE).await.expect(401);
        server.with_key(&viewer).any("GET", path, NONE).await.expect(403);
    }
    server.sql("UPDATE workspace_member SET role = 'admin' WHERE user_id = 2 AND workspace_id = 1").await;
    for path in &paths {
        server.with_key(&viewer).any("GET", path, NONE).await.expect(200);
    }
    // An owner elsewhere sees their own log, in which there is nothing.
    server.sql("UPDATE workspace_member SET role = 'owner' WHERE user_id = 2").await;
    server.sql("UPDATE api_key SET workspace_id = 2 WHERE user_id = 2").await;
    for path in &paths {
        let answer = server.with_key(&viewer).any("GET", path, NONE).await;
        if path.ends_with(&id) {
            assert!(answer.expect(404).to_string().contains("HF-0117"), "{path}");
        } else {
            assert_eq!(answer.expect(200)["items"], json!([]), "{path}");
        }
    }
}

#[tokio::test]
async fn an_operation_names_its_requests() {
    let server = Server::start().await;
    server.held.store(true, std::sync::atomic::Ordering::Relaxed);
    server.deploy("my-app").await;
    let list = server.at(V2026).any("GET", "/holdfast/v1/operations", NONE).await.expect(200);
    assert!(list["items"][0].get("requests").is_none(), "lists are without them");
    let id = text(&list["items"][0]["id"]);
    let path = format!("/holdfast/v1/operations/{id}");
    server.at(V2026).any("POST", &format!("{path}/cancel"), ("user-agent", "tester/2")).await.expect(202);
    let operation = server.at(V2026).any("GET", &path, NONE).await.expect(200);
    let requests = operation["requests"].as_array().expect("requests");
    let actions: Vec<_> = requests.iter().map(|r| text(&r["action"])).collect();
    assert_eq!(actions, ["vm.create", "operation.cancel"]);
    assert_eq!((&requests[1]["actor"], &requests[1]["method"]), (&json!("admin"), &json!("POST")));
    assert_eq!(text(&requests[1]["path"]), format!("{path}/cancel"));
    let entries = ours(&server, &format!("operation_id={id}&sort=created_at:asc")).await;
    for (request, entry) in requests.iter().zip(entries["items"].as_array().expect("items")) {
        assert_eq!((&request["id"], &request["at"]), (&entry["id"], &entry["created_at"]));
        assert_eq!(entry["operation_id"], id.as_str());
    }
    assert_eq!(entries["items"][1]["user_agent"], "tester/2");
    server.held.store(false, std::sync::atomic::Ordering::Relaxed);
}
