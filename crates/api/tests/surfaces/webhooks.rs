//! Managing webhooks: who may, what is refused, and where secrets are seen.

use axum::body::Body;
use serde_json::{Value, json};

use crate::support::{NEWEST, Server, V2025, V2026};

const URL: &str = "https://example.com/hook";

async fn create(server: &Server) -> Value {
    let body = json!({ "url": URL, "events": ["cvm.started", "cvm.created", "cvm.started"], "name": "ours" });
    server.at(V2026).post("/workspace/webhooks", &body).await.expect(201)
}

#[tokio::test]
async fn from_creation_to_deletion() {
    let server = Server::start().await;
    let made = create(&server).await;
    let secret = made["secret"].as_str().expect("a secret").to_owned();
    assert!(secret.starts_with("whsec_") && secret.len() > 40, "{made}");
    assert_eq!(made["events"], json!(["cvm.created", "cvm.started"]));
    assert_eq!((&made["name"], &made["enabled"]), (&json!("ours"), &json!(true)));
    let id = made["id"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("whk_"));
    let path = format!("/workspace/webhooks/{id}");
    for version in [V2025, V2026, NEWEST] {
        let seen = server.at(version).get(&path).await.expect(200);
        assert_eq!(seen["secret"], "whsec_****");
        assert_eq!(server.at(version).get("/workspace/webhooks").await.expect(200), json!([seen]));
    }
    let revealed = server.at(V2026).post(&format!("{path}/reveal-secret"), &Value::Null).await.expect(200);
    assert_eq!((&revealed["secret"], &revealed["previous_secret_valid_until"]), (&json!(secret), &Value::Null));
    let rotated = server.at(V2026).post(&format!("{path}/rotate-secret"), &Value::Null).await.expect(200);
    assert_ne!(rotated["secret"], secret.as_str());
    let revealed = server.at(V2026).post(&format!("{path}/reveal-secret"), &Value::Null).await.expect(200);
    assert_eq!(revealed, rotated);
    let change = json!({ "name": "", "events": ["operation.failed"], "enabled": false, "url": null });
    let changed = server.at(V2026).put(&path, &change).await.expect(200);
    assert_eq!((&changed["name"], &changed["url"], &changed["enabled"]), (&Value::Null, &json!(URL), &json!(false)));
    assert_eq!(changed["events"], json!(["operation.failed"]));
    // No secret is in any cell.
    let tables = server.tables().await;
    for secret in [secret.as_str(), rotated["secret"].as_str().expect("a secret")] {
        assert!(!tables.contains(secret) && !tables.contains(secret.trim_start_matches("whsec_")));
    }
    assert_eq!(server.at(V2026).delete(&path).await.status, 204);
    for answer in [server.at(V2026).get(&path).await, server.at(V2026).delete(&path).await] {
        assert_eq!(answer.expect(404)["error_code"], "HF-0170");
    }
    let log = server.at(V2026).any("GET", "/holdfast/v1/audit-logs?limit=100", ("", "")).await.expect(200);
    let count = |word: &str| log["items"].as_array().expect("rows").iter().filter(|row| row["action"] == word).count();
    for (action, times) in [("create", 1), ("reveal_secret", 2), ("rotate_secret", 1), ("update", 1), ("delete", 1)] {
        assert_eq!(count(&format!("webhook.{action}")), times, "{action}");
    }
}

#[tokio::test]
async fn a_secret_of_the_clients_own() {
    let server = Server::start().await;
    let own = "correct-horse-battery-staple";
    let body = json!({ "url": URL, "events": ["cvm.created"], "secret": own });
    assert_eq!(server.at(V2026).post("/workspace/webhooks", &body).await.expect(201)["secret"], own);
    assert!(!server.tables().await.contains(own));
}

#[tokio::test]
async fn what_is_refused() {
    let server = Server::start().await;
    let good = json!({ "url": URL, "events": ["cvm.created"] });
    let wrong = [
        ("url", json!("http://example.com/")),
        ("url", json!("https://127.0.0.1/")),
        ("url", json!("https://[::ffff:10.0.0.1]/")),
        ("url", json!("https://localhost/")),
        ("url", json!("https://user:word@example.com/")),
        ("url", json!(format!("https://example.com/{}", "x".repeat(2048)))),
        ("events", json!([])),
        ("events", json!(["cvm.exploded"])),
        ("name", json!("x".repeat(101))),
        ("secret", json!("short")),
        ("secret", json!("with a space in it, and long")),
    ];
    for (field, value) in wrong {
        let mut body = good.clone();
        body[field] = value.clone();
        let refused = server.at(V2026).post("/workspace/webhooks", &body).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", field]), "{value}: {refused}");
    }
    assert_eq!(server.at(V2026).get("/workspace/webhooks").await.expect(200), json!([]));
    for number in 0..50 {
        let body = json!({ "url": format!("{URL}/{number}"), "events": ["cvm.created"] });
        server.at(V2026).post("/workspace/webhooks", &body).await.expect(201);
    }
    let refused = server.at(V2026).post("/workspace/webhooks", &good).await.expect(409);
    assert_eq!(refused["error_code"], "HF-0172");
}

#[tokio::test]
async fn another_workspace_and_other_roles() {
    let server = Server::start().await;
    let id = create(&server).await["id"].as_str().expect("an id").to_owned();
    let key = server.stranger("user").await;
    let paths = [
        ("GET", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("POST", "/test"),
        ("POST", "/reveal-secret"),
        ("POST", "/rotate-secret"),
        ("GET", "/deliveries"),
        ("POST", "/deliveries/evt_1/resend"),
        ("GET", "/stats"),
    ];
    let ask = async |method: &str, path: &str| {
        let request = server.with_key(&key).request(method, &format!("/workspace/webhooks/{path}"));
        server.send(request.body(Body::from("{}")).expect("a request")).await
    };
    for (method, rest) in paths {
        let (here, nowhere) =
            (ask(method, &format!("{id}{rest}")).await, ask(method, &format!("whk_none{rest}")).await);
        assert_eq!((here.status.as_u16(), here.text()), (404, nowhere.text()), "{method} {rest}");
    }
    assert_eq!(server.with_key(&key).get("/workspace/webhooks").await.expect(200), json!([]));
    for role in ["reader", "member"] {
        let statement = if role == "reader" {
            "UPDATE workspace_member SET role = 'reader' WHERE user_id = 2"
        } else {
            "UPDATE workspace_member SET role = 'member' WHERE user_id = 2"
        };
        server.sql(statement).await;
        for (method, rest) in paths {
            let due = if method == "GET" { 404 } else { 403 };
            assert_eq!(ask(method, &format!("{id}{rest}")).await.status, due, "{role} {method} {rest}");
        }
    }
    assert_eq!(server.at(V2026).get(&format!("/workspace/webhooks/{id}")).await.status, 200);
}

#[tokio::test]
async fn a_repetition_shows_no_secret_twice() {
    let server = Server::start().await;
    let body = json!({ "url": URL, "events": ["cvm.created"] });
    let ask = async |path: &str, key: &str, body: &Value| {
        let request = server.at(V2026).request("POST", path).header("idempotency-key", key);
        server.send(request.body(Body::from(body.to_string())).expect("a request")).await
    };
    let made = ask("/workspace/webhooks", "one", &body).await.expect(201);
    let again = ask("/workspace/webhooks", "one", &body).await.expect(409);
    assert_eq!(again["error_code"], "HF-0134");
    let id = made["id"].as_str().expect("an id");
    assert!(again["message"].as_str().is_some_and(|text| text.contains(id)), "{again}");
    let path = format!("/workspace/webhooks/{id}");
    let rotated = ask(&format!("{path}/rotate-secret"), "two", &json!({})).await.expect(200);
    assert_eq!(ask(&format!("{path}/rotate-secret"), "two", &json!({})).await.status, 409);
    let revealed = ask(&format!("{path}/reveal-secret"), "three", &json!({})).await.expect(200);
    assert_eq!(revealed["secret"], rotated["secret"]);
    assert_eq!(ask(&format!("{path}/reveal-secret"), "three", &json!({})).await.expect(200), revealed);
    let sent = ask(&format!("{path}/test"), "four", &json!({})).await.expect(200);
    assert_eq!(ask(&format!("{path}/test"), "four", &json!({})).await.expect(200), sent);
    assert_eq!(server.at(V2026).get(&format!("{path}/deliveries")).await.expect(200).as_array().map(Vec::len), Some(1));
    assert!(!server.tables().await.contains(rotated["secret"].as_str().expect("a secret")));
}
