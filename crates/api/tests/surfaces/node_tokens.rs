//! Node tokens: shown once, kept as a hash, and worth nothing once they are revoked.

use axum::body::Body;
use serde_json::{Value, json};

use crate::support::{Answer, Server, V2026, until};

const PATH: &str = "/holdfast/v1/node-tokens";

async fn make(server: &Server, key: &str, body: &Value) -> Answer {
    let request = server.at(V2026).request("POST", "/").uri(PATH).header("idempotency-key", key);
    server.send(request.body(Body::from(body.to_string())).expect("a request")).await
}

#[tokio::test]
async fn a_token_is_shown_once_and_never_again() {
    let server = Server::start().await;
    let body = json!({ "name": "rack-7" });
    let made = make(&server, "t1", &body).await.expect(201);
    let (id, token) = (made["id"].as_str().expect("an id"), made["token"].as_str().expect("a token"));
    assert!(id.starts_with("ntk_") && token.starts_with("hfnode_") && token.len() == 71, "{made}");
    server.control.authenticate_node(token).await.expect("it works");

    // The answer may have been lost on its way, or never have been kept: no difference.
    for lost in [false, true] {
        if lost {
            server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
        }
        let refusal = make(&server, "t1", &body).await.expect(409);
        assert_eq!(refusal["error"]["code"], "HF-0134");
        assert!(refusal["error"]["message"].as_str().expect("a text").contains(id), "{refusal}");
        assert!(!refusal.to_string().contains(token));
    }
    assert_eq!(make(&server, "t1", &json!({ "name": "rack-8" })).await.expect(422)["error"]["code"], "HF-0132");

    let list = server.at(V2026).any("GET", PATH, ("", "")).await.expect(200);
    let mine: Vec<_> = list["items"].as_array().expect("items").iter().filter(|t| t["name"] == "rack-7").collect();
    assert_eq!(mine.len(), 1, "{list}");
    assert_eq!((&mine[0]["id"], &mine[0]["node"], &mine[0]["revoked_at"]), (&made["id"], &Value::Null, &Value::Null));
    assert!(mine[0].get("token").is_none());
    let tables = server.tables().await;
    assert!(tables.contains("rack-7") && tables.contains("node_token.create"));
    assert!(!tables.contains(token) && !tables.contains(&token["hfnode_".len()..]), "the token is in the database");
}

#[tokio::test]
async fn a_revoked_token_ends_its_nodes_session() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let list = server.at(V2026).any("GET", PATH, ("", "")).await.expect(200);
    let token = list["items"][0].clone();
    assert_eq!((&token["name"], &token["node"]["name"]), (&json!("test"), &json!("test-node")));
    let nodes = "/holdfast/v1/nodes";
    assert_eq!(server.at(V2026).any("GET", nodes, ("", "")).await.expect(200)["items"][0]["ready"], true);
    // What waits for news is told at once that it is nobody any more, and so is the open socket.
    let mut socket = server.control.streams.attach(1);
    let path = format!("{PATH}/{}", token["id"].as_str().expect("an id"));
    assert_eq!(server.at(V2026).any("DELETE", &path, ("idempotency-key", "d1")).await.status, 204);
    assert!(socket.next_request().await.is_none());
    assert_eq!(server.at(V2026).any("DELETE", &path, ("idempotency-key", "d1")).await.status, 204);
    let refusal = server.at(V2026).any("DELETE", &path, ("", "")).await.expect(404);
    assert_eq!(refusal["error"]["code"], "HF-0305");

    until("the node was told", async || server.node_ended()).await;
    let node = server.at(V2026).any("GET", nodes, ("", "")).await.expect(200)["items"][0].clone();
    assert_eq!((&node["ready"], &node["reason"]), (&json!(false), &json!("its token was revoked")));
    let list = server.at(V2026).any("GET", PATH, ("", "")).await.expect(200);
    assert!(list["items"][0]["revoked_at"].is_string(), "{list}");
    let refused = server.at(V2026).post("/cvms/provision", &crate::support::provision("other-app")).await;
    assert_eq!(refused.expect(400)["error_code"], "ERR-02-002");
    let audited = server.tables().await;
    assert_eq!(audited.matches("node_token.revoke").count(), 1);
}

#[tokio::test]
async fn tokens_are_for_administrators() {
    let server = Server::start().await;
    let key = server.stranger("user").await;
    for (method, path) in [("GET", PATH), ("POST", PATH), ("DELETE", "/holdfast/v1/node-tokens/ntk_x")] {
        let request = |key: &str| {
            let ask = server.with_key(key).request(method, "/").uri(path);
            ask.body(Body::from("{\"name\":\"mine\"}")).expect("a request")
        };
        assert_eq!(server.send(request(&key)).await.expect(403)["error"]["code"], "HF-0009");
        assert_eq!(server.send(request("phak_wrong")).await.expect(401)["error"]["code"], "HF-0002");
    }
    for name in ["", "a b", &"x".repeat(64), "é"] {
        assert_eq!(make(&server, "n", &json!({ "name": name })).await.expect(422)["error"]["code"], "HF-0001");
    }
    assert_eq!(server.at(V2026).any("DELETE", &format!("{PATH}/nonsense"), ("", "")).await.status, 404);
}
