//! Tokens that may less than their holder, sessions that only pages of ours can use, and passwords that tell nothing.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use holdfast_control::{RequestInfo, SystemClock, passwords};
use serde_json::{Value, json};

use crate::support::{Answer, Server, V2026, provision};

/// A request that came from nowhere.
pub fn info() -> RequestInfo {
    RequestInfo {
        request_id: "test".to_owned(),
        trace_id: None,
        client_address: None,
        user_agent: String::new(),
        method: "POST".to_owned(),
        path: "/test".to_owned(),
        idempotency: None,
        rehearsal: None,
    }
}

async fn make(server: &Server, body: Value) -> Value {
    server.at(V2026).post("/tokens", &body).await.expect(200)
}

fn secret(token: &Value) -> String {
    token["token"].as_str().expect("a secret").to_owned()
}

async fn from(server: &Server, key: &str, address: &str) -> Answer {
    let mut request = server.with_key(key).request("GET", "/auth/me").body(Body::empty()).expect("a request");
    let address: SocketAddr = format!("{address}:1234").parse().expect("an address");
    request.extensions_mut().insert(ConnectInfo(address));
    server.send(request).await
}

#[tokio::test]
async fn a_token_is_shown_once_and_kept_as_a_hash() {
    let server = Server::start().await;
    let made = make(&server, json!({ "name": " laptop ", "expires_in_days": 2 })).await;
    let token = secret(&made);
    assert!(token.starts_with("phak_") && token.len() == 48, "{made}");
    assert_eq!(
        (&made["name"], &made["is_active"], &made["last_used_at"]),
        (&json!("laptop"), &json!(true), &Value::Null)
    );
    assert_eq!((&made["team_slug"], &made["default_version"]), (&json!("default"), &json!("2026-06-23")));
    assert_eq!(server.with_key(&token).get("/auth/me").await.status, 200);

    let find = async || {
        let list = server.at(V2026).get("/tokens").await.expect(200);
        list.as_array().expect("a list").iter().find(|t| t["id"] == made["id"]).cloned()
    };
    let listed = find().await.expect("it is listed");
    assert_eq!(listed["token"], Value::Null);
    assert!(token.starts_with(listed["token_prefix"].as_str().expect("a prefix")));
    // Used just now: that is known at once, and written for many requests together.
    assert!(listed["last_used_at"].is_string());
    let used = format!("SELECT COUNT(*) FROM api_key WHERE id = {} AND last_used_at IS NOT NULL", made["id"]);
    assert_eq!(server.number(&used).await, 0);
    server.control.uses_write().await.expect("it is written");
    assert_eq!(server.number(&used).await, 1);

    let tables = server.tables().await;
    assert!(tables.contains("laptop") && tables.contains("token.create"));
    assert!(!tables.contains(&token) && !tables.contains(&token[9..]), "the token is in the database");

    server.execute(&format!("UPDATE api_key SET expires_at = 1 WHERE id = {}", made["id"])).await;
    assert_eq!(server.with_key(&token).get("/auth/me").await.status, 401);
    assert_eq!(find().await.expect("it is listed")["is_active"], false);
    assert_eq!(server.at(V2026).delete(&format!("/tokens/{}", made["id"])).await.status, 204);
    assert!(find().await.is_none());
    assert_eq!(server.at(V2026).delete(&format!("/tokens/{}", made["id"])).await.expect(404)["error_code"], "HF-0403");
}

#[tokio::test]
async fn the_answer_with_the_secret_is_not_given_twice() {
    let server = Server::start().await;
    let ask = async |path: &str, body: Value| {
        let request = server.at(V2026).request("POST", path).header("idempotency-key", format!("k{path}"));
        server.send(request.body(Body::from(body.to_string())).expect("a request")).await
    };
    let made = ask("/tokens", json!({ "name": "ci" })).await.expect(200);
    let again = ask("/tokens", json!({ "name": "ci" })).await.expect(409);
    assert!(again["message"].as_str().expect("words").contains(&format!("token {}", made["id"])), "{again}");
    assert!(!again.to_string().contains(&secret(&made)));
    let refresh = format!("/tokens/{}/refresh", made["id"]);
    let fresh = ask(&refresh, json!({})).await.expect(200);
    assert_ne!(secret(&made), secret(&fresh));
    assert_eq!(ask(&refresh, json!({})).await.expect(409)["error_code"], "HF-0134");
    assert_eq!(server.with_key(&secret(&made)).get("/auth/me").await.status, 401);
    assert_eq!(server.with_key(&secret(&fresh)).get("/auth/me").await.status, 200);
    assert_eq!((&fresh["id"], &fresh["name"], &fresh["last_used_at"]), (&made["id"], &json!("ci"), &Value::Null));
    assert!(!server.tables().await.contains(&secret(&fresh)));
}

/// A login is no different, but that neither its password nor a hash of it may stay behind.
#[tokio::test]
async fn a_login_under_one_key_makes_one_token() {
    const PASSWORD: &str = "a good password";
    let server = Server::start().await;
    passwords::set(&server.control.store, &SystemClock, "admin", PASSWORD).await.expect("a password");
    let form = format!("username=admin&password={}", PASSWORD.replace(' ', "+"));
    // A credential that is sent along makes no difference.
    let ask = async |key: &str, form: &str, credential: &str| {
        let request = Request::post("/api/v1/auth/token").header("content-type", "application/x-www-form-urlencoded");
        let request = request.header("idempotency-key", key).header("x-api-key", credential);
        server.send(request.body(Body::from(form.to_owned())).expect("a request")).await
    };
    // What is refused takes no key.
    assert_eq!(ask("l1", "username=admin&password=wrong", "").await.status, 401);
    let made = ask("l1", &form, "").await.expect(200);
    let token = made["access_token"].as_str().expect("a token");
    for credential in ["", &server.key] {
        let again = ask("l1", &form, credential).await.expect(409);
        assert_eq!(again["error_code"], "HF-0134", "{again}");
        assert!(!again.to_string().contains(token));
    }
    assert_eq!(ask("l1", "username=admin&password=wrong", "").await.status, 401, "a wrong password learns nothing");
    assert_eq!(server.number("SELECT COUNT(*) FROM api_key WHERE kind = 'password'").await, 1);
    assert_eq!(server.audited("action", "token.create").await, 1);
    assert_eq!(server.with_key(token).get("/auth/me").await.status, 200);
    let tables = server.tables().await;
    for request in [form.as_str(), &format!("POST\0/api/v1/auth/token\0{form}"), PASSWORD] {
        assert!(!tables.contains(&holdfast_model::compose::sha256_hex(request)), "{request}");
    }
    assert!(!tables.contains(token) && !tables.contains(PASSWORD));
    ask("l2", &form, "").await.expect(200);
    assert_eq!(ask("not a key", &form, "").await.expect(400)["error_code"], "HF-0133");
}

#[tokio::test]
async fn a_refreshed_token_lives_as_long_again() {
    let server = Server::start().await;
    let made = make(&server, json!({ "name": "old", "expires_in_days": 10, "default_version": "2026-01-21" })).await;
    let path = format!("/tokens/{}/refresh", made["id"]);
    let back = 5 * 86_400_000_000_i64;
    server
        .execute(&format!(
            "UPDATE api_key SET created_at = created_at - {back}, expires_at = expires_at - {back} WHERE id = {}",
            made["id"]
        ))
        .await;
    let fresh = server.at(V2026).post(&path, &json!({ "upgrade_version": false })).await.expect(200);
    assert_eq!(fresh["default_version"], "2026-01-21");
    let day = |value: &Value| value.as_str().expect("a time")[..10].to_owned();
    assert_eq!(day(&fresh["expires_at"]), day(&made["expires_at"]));
    let fresh = server.at(V2026).post(&path, &json!({ "expires_in_days": 1 })).await.expect(200);
    assert_eq!(fresh["default_version"], "2026-06-23");
    assert!(day(&fresh["expires_at"]) < day(&made["expires_at"]));
}

#[tokio::test]
async fn a_token_may_less_than_its_holder() {
    let server = Server::start().await;
    let reader = secret(&make(&server, json!({ "name": "reader", "scopes": ["read"] })).await);
    let reader = server.with_key(&reader);
    assert_eq!(reader.get("/cvms").await.status, 200);
    let refused = reader.post("/cvms/provision", &provision("some-app")).await.expect(403);
    assert!(refused["message"].as_str().expect("words").contains("vms.write"), "{refused}");
    assert_eq!(reader.get("/tokens").await.status, 403);
    assert_eq!(reader.any("GET", "/holdfast/v1/nodes", ("", "")).await.status, 403);
    // Nor does it see what only administrators see.
    assert_eq!(reader.get("/auth/me").await.expect(200)["user"]["role"], "user");

    // What it makes itself may no more than it may.
    let narrow = secret(&make(&server, json!({ "name": "narrow", "scopes": ["read", "own"] })).await);
    let narrow = server.with_key(&narrow);
    let child = narrow.post("/tokens", &json!({ "name": "child" })).await.expect(200);
    assert_eq!(child["scopes"], json!(["read", "own"]));
    let more = narrow.post("/tokens", &json!({ "name": "more", "scopes": ["read", "vms.write"] })).await.expect(403);
    assert_eq!(more["error_code"], "ERR-06-006");
    // Nor can it take the place of one that may more, though it may end it.
    let whole = make(&server, json!({ "name": "whole" })).await;
    assert_eq!(narrow.post(&format!("/tokens/{}/refresh", whole["id"]), &json!({})).await.status, 403);
    assert_eq!(server.with_key(&secret(&whole)).get("/auth/me").await.status, 200);
    assert_eq!(narrow.post(&format!("/tokens/{}/refresh", child["id"]), &json!({})).await.status, 200);
    assert_eq!(narrow.delete(&format!("/tokens/{}", whole["id"])).await.status, 204);
    // Limits that this version does not know let nobody in.
    server.sql("UPDATE api_key SET limits = '{\"hours\":[8,16]}' WHERE name = 'reader'").await;
    assert!(reader.get("/cvms").await.status.as_u16() >= 400);
}

#[tokio::test]
async fn a_token_works_from_where_it_is_for() {
    let server = Server::start().await;
    let rule = json!({ "allowed": ["10.0.0.0/8", "2001:db8::7"], "blocked": ["10.9.0.0/16"] });
    let made = make(&server, json!({ "name": "office", "source_ip_rule": rule })).await;
    assert_eq!(made["source_ip_rules"][0]["allowed"], json!(["10.0.0.0/8", "2001:db8::7/128"]));
    let key = secret(&made);
    for address in ["10.1.2.3", "[2001:db8::7]", "[::ffff:10.1.2.3]"] {
        assert_eq!(from(&server, &key, address).await.status, 200, "{address}");
    }
    let unknown = from(&server, "phak_wrong", "10.1.2.3").await.expect(401);
    for address in ["10.9.2.3", "11.0.0.1", "[2001:db8::8]", "127.0.0.1"] {
        // The same answer as for a key that nobody has.
        assert_eq!(from(&server, &key, address).await.expect(401), unknown, "{address}");
    }
    // Headers that tell of other addresses are only words.
    let request = server.with_key(&key).request("GET", "/auth/me").header("x-forwarded-for", "10.1.2.3");
    assert_eq!(server.send(request.body(Body::empty()).expect("a request")).await.status, 401);
    for wrong in ["10.0.0.1/8", "here", "10.0.0.0/33"] {
        let body = json!({ "name": "a", "source_ip_rule": { "allowed": [wrong] } });
        assert_eq!(server.at(V2026).post("/tokens", &body).await.status, 422, "{wrong}");
    }
}

#[tokio::test]
async fn a_token_for_projects_goes_on_when_there_are_others() {
    let server = Server::start().await;
    let project = server.text("SELECT uuid FROM project WHERE workspace_id = 1").await;
    let made = make(&server, json!({ "name": "one", "project_ids": ["default"] })).await;
    assert_eq!(made["project_ids"], json!([project]));
    let key = secret(&made);
    let foreign = json!({ "name": "two", "project_ids": ["0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e"] });
    assert_eq!(server.at(V2026).post("/tokens", &foreign).await.status, 422);
    server.holdfast("POST", "/projects", &json!({ "name": "other" })).await.expect(201);
    assert_eq!(server.with_key(&key).get("/cvms").await.status, 200);
    // There was a time when a project could be all that a workspace has; it was never the workspace.
    assert_eq!(server.with_key(&key).get("/workspace/webhooks").await.expect(403)["error_code"], "HF-0435");
}

#[tokio::test]
async fn tokens_are_their_holders_own() {
    let server = Server::start().await;
    let made = make(&server, json!({ "name": "mine" })).await;
    let key = server.stranger("user").await;
    let stranger = server.with_key(&key);
    let path = format!("/tokens/{}", made["id"]);
    let foreign = stranger.delete(&path).await.expect(404);
    assert_eq!(foreign, stranger.delete("/tokens/123456").await.expect(404));
    assert_eq!(stranger.post(&format!("{path}/refresh"), &json!({})).await.expect(404), foreign);
    // Neither does another member of the same workspace have it.
    server.sql("INSERT INTO workspace_member (workspace_id, user_id, role) VALUES (1, 2, 'owner')").await;
    server.sql("UPDATE api_key SET workspace_id = 1 WHERE user_id = 2").await;
    assert_eq!(stranger.delete(&path).await.expect(404), foreign);
    assert_eq!(stranger.get("/tokens").await.expect(200).as_array().map(Vec::len), Some(1));
    // A user who belongs to several workspaces sees those of one, or of all.
    let other = stranger.post("/tokens", &json!({ "name": "here" })).await.expect(200);
    server.execute(&format!("UPDATE api_key SET workspace_id = 2 WHERE id = {}", other["id"])).await;
    assert_eq!(stranger.get("/tokens").await.expect(200).as_array().map(Vec::len), Some(1));
    assert_eq!(stranger.get("/tokens?all_workspaces=true").await.expect(200).as_array().map(Vec::len), Some(2));
    assert_eq!(stranger.post(&format!("/tokens/{}/refresh", other["id"]), &json!({})).await.status, 404);
    assert_eq!(stranger.delete(&format!("/tokens/{}", other["id"])).await.status, 204);
}

async fn password_login(server: &Server, form: &str) -> Answer {
    let request = Request::post("/api/v1/auth/token").header("content-type", "application/x-www-form-urlencoded");
    server.send(request.body(Body::from(form.to_owned())).expect("a request")).await
}

#[tokio::test]
async fn a_password_is_worth_a_token_and_tells_nothing() {
    let server = Server::start().await;
    let password = "a long & good pass%word";
    let form = format!(
        "grant_type=password&username=admin&password={}",
        password.replace('&', "%26").replace("%w", "%25w").replace(' ', "+")
    );
    // Nobody has one at first.
    let nobody = password_login(&server, &form).await;
    assert_eq!(nobody.headers["www-authenticate"], "Bearer");
    let nobody = nobody.expect(401);
    assert!(passwords::set(&server.control.store, &SystemClock, "admin", "short").await.is_err());
    assert!(!passwords::set(&server.control.store, &SystemClock, "ghost", password).await.expect("it is looked up"));
    assert!(passwords::set(&server.control.store, &SystemClock, "admin", password).await.expect("it is set"));
    let token = password_login(&server, &form).await;
    assert_eq!(token.headers["cache-control"], "no-store");
    let token = token.expect(200);
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("bearer"), &json!(86_400)));
    let token = token["access_token"].as_str().expect("a token").to_owned();
    let me = Request::get("/api/v1/auth/me").header("authorization", format!("Bearer {token}"));
    let me = me.header("x-phala-version", V2026).body(Body::empty()).expect("a request");
    assert_eq!(server.send(me).await.expect(200)["user"]["flag_has_password"], true);
    // A wrong password, a name that nobody has, and a user without a password are one answer.
    server.stranger("user").await;
    for form in ["username=admin&password=wrong", "username=ghost&password=wrong", "username=stranger&password="] {
        assert_eq!(password_login(&server, form).await.expect(401), nobody, "{form}");
    }
    let tables = server.tables().await;
    assert!(tables.contains("$argon2id$v=19$m=19456,t=2,p=1$"));
    assert!(!tables.contains(password) && !tables.contains(&token) && !tables.contains("pass%25word"));
    // Another password ends what this one gave, and leaves tokens that were made on purpose.
    assert_eq!(server.with_key(&token).get("/auth/me").await.status, 200);
    assert!(
        passwords::set(&server.control.store, &SystemClock, "admin", "quite another one").await.expect("it is set")
    );
    assert_eq!(server.with_key(&token).get("/auth/me").await.status, 401);
    assert_eq!(server.with_key(&server.key).get("/auth/me").await.status, 200);
}

#[tokio::test]
async fn logins_are_counted_before_they_are_looked_at() {
    let server = Server::start().await;
    let mut tries = 0;
    let refused = loop {
        let answer = password_login(&server, "username=ghost&password=wrong").await;
        tries += 1;
        if answer.status != 401 {
            break answer;
        }
    };
    assert!((10..15).contains(&tries), "{tries}");
    let wait: u64 = refused.headers["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=16).contains(&wait), "{wait}");
    assert_eq!(refused.expect(429)["error_code"], "HF-0402");
    // The right password is held up as well, and somebody else is not.
    assert!(passwords::set(&server.control.store, &SystemClock, "admin", "a good password").await.expect("it is set"));
    assert_eq!(password_login(&server, "username=ghost&password=other").await.status, 429);
    assert_eq!(password_login(&server, "username=admin&password=a+good+password").await.status, 200);
}
