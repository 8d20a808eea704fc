//! What clients get wrong, and the place that each answer names.

use serde_json::{Value, json};

use crate::support::{Server, V2025, V2026, provision};

/// A change to a request that the CLI would send.
fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut body = provision("some-app");
    change(&mut body);
    body
}

#[tokio::test]
async fn provisions_that_cannot_be() {
    let server = Server::start().await;
    let compose = |text: &str| changed(|b| b["compose_file"]["docker_compose_file"] = text.into());
    let cases = [
        (compose("just text"), 400, "ERR-01-003"),
        (compose("services: {}"), 400, "ERR-01-003"),
        (compose("a: [1"), 400, "ERR-01-003"),
        (compose(""), 400, "ERR-01-002"),
        (compose(&format!("services:\n  a:\n    image: a\n#{}", "x".repeat(200 * 1024))), 400, "ERR-01-003"),
        (changed(|b| b["instance_type"] = "tdx.huge".into()), 400, "ERR-02-001"),
        (changed(|b| b["image"] = "windows".into()), 400, "ERR-02-010"),
        (changed(|b| b["memory"] = 10_000_000.into()), 400, "ERR-02-004"),
        (changed(|b| b["vcpu"] = 1000.into()), 400, "ERR-02-003"),
        (changed(|b| b["disk_size"] = 1_000_000.into()), 400, "ERR-02-002"),
        (changed(|b| b["teepod_id"] = 99.into()), 400, "ERR-01-001"),
        (changed(|b| b["region"] = "moon".into()), 400, "ERR-02-002"),
        (changed(|b| b["kms"] = "ETHEREUM".into()), 400, "ERR-02-011"),
        (changed(|b| b["kms_id"] = "kms_other".into()), 400, "ERR-02-011"),
        (changed(|b| b["gpus"] = json!({ "gpus": [{ "slot": "1" }] })), 400, "ERR-02-009"),
        (changed(|b| b["gpus"] = json!({ "gpus": [], "attach_mode": "all" })), 400, "ERR-02-009"),
        (changed(|b| b["hugepages"] = true.into()), 400, "ERR-02-009"),
        (changed(|b| b["ports"] = json!([{ "host_port": 1 }])), 400, "ERR-02-009"),
    ];
    for (body, status, code) in cases {
        let answer = server.at(V2025).post("/cvms/provision", &body).await.expect(status);
        assert_eq!(answer["error_code"], code, "{answer}");
        // With a `detail` the clients would not look at the code.
        assert!(answer.get("detail").is_none() && answer["message"].is_string() && answer["links"].is_array());
    }
    for name in ["abcd", "1abcde", "-abcde", "abcde-", "ab--cde", "ab_cde", &"a".repeat(64), "ünicode", ""] {
        let answer = server.at(V2025).post("/cvms/provision", &provision(name)).await.expect(422);
        assert_eq!(answer["detail"][0]["loc"], json!(["body", "name"]), "{name}");
    }
}

#[tokio::test]
async fn what_the_clients_send_is_taken() {
    let server = Server::start().await;
    let bodies = [
        changed(|b| {
            b["vcpu"] = json!(2.0);
            b["memory"] = json!(4096.0);
            b["disk_size"] = json!(30.0);
            b["unknown"] = json!({ "x": 1 });
        }),
        changed(|b| b["listed"] = json!(1)),
        changed(|b| {
            for field in
                ["instance_type", "vcpu", "memory", "region", "gpus", "ports", "listed", "image", "kms", "nonce"]
            {
                b[field] = Value::Null;
            }
        }),
        changed(|b| b["gpus"] = json!({ "gpus": [], "attach_mode": "listed" })),
        changed(|b| b["node_id"] = json!(1)),
    ];
    for body in bodies {
        let answer = server.at(V2025).post("/cvms/provision", &body).await.expect(200);
        assert_eq!(answer["compose_hash"].as_str().map(str::len), Some(64));
    }
}

#[tokio::test]
async fn bodies_that_cannot_be_read() {
    let server = Server::start().await;
    let loc = async |path: &str, body: &[u8]| {
        let answer = server.at(V2025).post_bytes(path, body.to_vec()).await.expect(422);
        assert!(answer["detail"][0]["msg"].is_string() && answer["detail"][0]["type"].is_string(), "{answer}");
        answer["detail"][0]["loc"].clone()
    };
    assert_eq!(loc("/cvms/provision", b"{").await, json!(["body"]));
    assert_eq!(loc("/cvms/provision", b"").await, json!(["body"]));
    assert_eq!(loc("/cvms/provision", b"[]").await, json!(["body"]));
    assert_eq!(loc("/cvms/provision", b"{} {}").await[0], "body");
    assert_eq!(loc("/cvms/provision", b"{\"name\":\"\xff\"}").await[0], "body");
    assert_eq!(loc("/cvms/provision", b"{\"compose_file\":{}}").await, json!(["body", "name"]));
    assert_eq!(loc("/cvms/provision", b"{\"name\":7}").await, json!(["body", "name"]));
    assert_eq!(
        loc("/cvms/provision", b"{\"name\":\"a\",\"compose_file\":\"x\"}").await,
        json!(["body", "compose_file"])
    );
    assert_eq!(loc("/cvms", b"{\"app_id\":\"a\"}").await, json!(["body", "compose_hash"]));
    assert_eq!(loc("/status/batch", b"{\"vm_uuids\":[1]}").await[1], "vm_uuids[0]");
    assert_eq!(loc("/cvms/x/restart", b"{\"force\":\"yes\"}").await, json!(["body", "force"]));
    for vcpu in [json!(1.5), json!("2"), json!(true), json!(1e300)] {
        let body = changed(|b| b["vcpu"] = vcpu).to_string();
        assert_eq!(loc("/cvms/provision", body.as_bytes()).await, json!(["body", "vcpu"]));
    }
    for memory in [0, -1, 511, i64::MIN] {
        let body = changed(|b| b["memory"] = memory.into()).to_string();
        assert_eq!(loc("/cvms/provision", body.as_bytes()).await, json!(["body", "memory"]));
    }
    for env in ["xyz", "abcd", "abc", &"ab".repeat(300 * 1024)] {
        let body = json!({ "app_id": "a", "compose_hash": "b", "encrypted_env": env }).to_string();
        assert_eq!(loc("/cvms", body.as_bytes()).await, json!(["body", "encrypted_env"]));
    }
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let server = Server::start().await;
    for path in ["/cvms/provision", "/cvms", "/status/batch", "/cvms/x/restart"] {
        let body = server.at(V2025).post_bytes(path, vec![b' '; 100 << 20]).await.expect(413);
        assert_eq!(body["error_code"], "HF-0005", "{path}");
    }
}

#[tokio::test]
async fn paths_that_are_no_text() {
    let server = Server::start().await;
    for path in ["/cvms/%ff", "/cvms/%ff/operations", "/apps/%c3%28", "/workspaces/%ff"] {
        let body = server.at(V2026).get(path).await.expect(400);
        assert!(body["message"].is_string(), "{path}: {body}");
    }
    // An odd query is read as far as it goes.
    assert_eq!(server.at(V2026).get("/cvms/paginated?%ff=%ff&&=&page=1").await.status, 200);
}

#[tokio::test]
async fn commits_that_cannot_be() {
    let server = Server::start().await;
    let vm = server.deploy_running("taken-name").await;
    let taken = server.at(V2025).post("/cvms/provision", &provision("taken-name")).await.expect(409);
    assert_eq!(taken["error_code"], "ERR-01-004");

    let first = server.at(V2025).post("/cvms/provision", &provision("race-name")).await.expect(200);
    let second = server.at(V2025).post("/cvms/provision", &provision("race-name")).await.expect(200);
    let commit = |p: &Value| json!({ "app_id": p["app_id"], "compose_hash": p["compose_hash"] });
    server.at(V2025).post("/cvms", &commit(&first)).await.expect(200);
    assert_eq!(server.at(V2025).post("/cvms", &commit(&second)).await.expect(409)["error_code"], "ERR-01-004");

    let other = json!({ "app_id": vm["app_id"], "compose_hash": "ab".repeat(32) });
    assert_eq!(server.at(V2025).post("/cvms", &other).await.expect(409)["error_code"], "ERR-03-007");
    let none = json!({ "app_id": "ab".repeat(20), "compose_hash": "ab".repeat(32) });
    let answer = server.at(V2025).post("/cvms", &none).await.expect(422);
    assert_eq!((&answer["message"], &answer["error_code"]), (&json!("Provision data not found."), &json!("HF-0114")));
    // An app of the same name could not have been deleted meanwhile: nothing of the refused ones is left.
    assert_eq!(server.at(V2026).get("/apps").await.expect(200)["total"], 2);
}

#[tokio::test]
async fn pages_and_filters_that_make_no_sense() {
    let server = Server::start().await;
    server.deploy_running("any-app").await;
    let cases = [
        ("/cvms/paginated?page=0", "page"),
        ("/cvms/paginated?page=x", "page"),
        ("/cvms/paginated?page_size=101", "page_size"),
        ("/cvms/paginated?page=99999999999999999999", "page"),
        ("/cvms/paginated?teepod_id=one", "teepod_id"),
        ("/cvms/paginated?user_id=wks_1", "user_id"),
        ("/cvms?user_id=1", "user_id"),
        ("/apps?page_size=0", "page_size"),
        ("/apps?listed=perhaps", "listed"),
        ("/os-images?is_dev=2", "is_dev"),
        ("/workspaces/default/nodes?page=-1", "page"),
        ("/cvms/any-app/state?target=happy", "target"),
        ("/cvms/any-app/state?target=running&interval=4", "interval"),
        ("/cvms/any-app/state?target=running&timeout=601", "timeout"),
    ];
    for (path, field) in cases {
        let body = server.at(V2026).get(path).await.expect(422);
        assert_eq!(body["detail"][0]["loc"], json!(["query", field]), "{path}");
    }
    let many = json!({ "vm_uuids": vec!["x"; 501] });
    assert_eq!(server.at(V2026).post("/status/batch", &many).await.expect(422)["detail"][0]["loc"][1], "vm_uuids");
    let strange = json!({ "vm_uuids": ["x", "", "00000000-0000-4000-8000-000000000000"] });
    assert_eq!(server.at(V2026).post("/status/batch", &strange).await.expect(200), json!({}));
    assert_eq!(server.at(V2026).get("/instance-types/quantum").await.expect(404)["error_code"], "ERR-02-001");
    assert_eq!(server.at(V2026).get("/cvms/paginated?page=2147483647").await.expect(200)["items"], json!([]));
}
