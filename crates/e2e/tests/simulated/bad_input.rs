//! What people and programs send by mistake or on purpose.
//!
//! The one rule: the answer is a client error in a shape that the official clients parse, says what is wrong, names no
//! path of the host, and nothing was changed.

use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON};
use holdfast_harness::client::Answer;
use serde_json::{Value, json};

/// Fails unless it is a proper refusal with one of the statuses.
fn refused(what: &str, answer: &Answer, statuses: &[u16]) -> Value {
    let Answer { status, text, headers } = answer;
    assert!(statuses.contains(status), "{what}: {status} {text}");
    let kind = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    assert!(kind.starts_with("application/json"), "{what}: {kind}: {text}");
    let body = answer.json();
    let structured = body["error_code"].is_string() && body["message"].is_string() && body.get("detail").is_none();
    // The other surfaces: Nirvana's and our own.
    let ours = body.get("error").unwrap_or(&body);
    let plain = ours["code"].is_string() && ours["message"].is_string();
    let fields = body["detail"].as_array().is_some_and(|list| {
        !list.is_empty() && list.iter().all(|d| d["loc"].is_array() && d["msg"].is_string() && d["type"].is_string())
    });
    assert!(structured || plain || fields || body["detail"].is_string(), "{what}: no client parses {text}");
    for secret in ["/tmp/", "/root/", "sqlite", "panicked", ".rs:"] {
        assert!(!text.to_lowercase().contains(secret), "{what}: {text}");
    }
    body
}

fn provision(cloud: &Cloud, name: &str, compose: &str, extra: Value) -> Answer {
    cloud.client.provision(name, compose, &extra).expect("the server answers")
}

fn cvms(cloud: &Cloud) -> usize {
    let page = cloud.client.get("/api/v1/cvms/paginated").and_then(Answer::ok).expect("the list");
    page["items"].as_array().expect("items").len()
}

#[test]
fn provisions_that_are_refused() {
    let cloud = Cloud::simulated(1);
    for name in
        ["", "four", "two words", "-dashed", "dashed-", "under_score!", "ärger", "a/../../b", "9lives", &"a".repeat(64)]
    {
        refused(&format!("name {name:?}"), &provision(&cloud, name, COMPOSE, json!({})), &[400, 422]);
    }
    let long = format!("services:\n  a:\n    image: \"{}\"\n", "x".repeat(201 * 1024));
    refused("compose over 200 KiB", &provision(&cloud, "too-long", &long, json!({})), &[400, 413, 422]);
    for yaml in ["", "- a\n- b\n", "services: []\n", "just text", "a: [1, 2", "services:\n  a: 5\n", "\u{0}"] {
        refused(&format!("compose {yaml:?}"), &provision(&cloud, "not-yaml", yaml, json!({})), &[400, 422]);
    }
    let body = refused(
        "type",
        &provision(&cloud, "no-such-type", COMPOSE, json!({"instance_type": "tdx.nothing"})),
        &[400, 404, 422],
    );
    assert_eq!(body["error_code"], "ERR-02-001");
    let body = refused(
        "image",
        &provision(&cloud, "no-such-image", COMPOSE, json!({"image": "no-such-image"})),
        &[400, 404, 422],
    );
    assert_eq!(body["error_code"], "ERR-02-010");
    let huge = json!({"vcpu": 1, "memory": 1024 * 1024 * 1024, "disk_size": 20});
    let body = refused("memory", &provision(&cloud, "too-much", COMPOSE, huge), &[400, 409, 422]);
    assert!(body.to_string().to_lowercase().contains("memory"), "the reason is told: {body}");
    for extra in [
        json!({"vcpu": -1}),
        json!({"vcpu": "many"}),
        json!({"memory": 0}),
        json!({"disk_size": 1e12}),
        json!({"compose_file": 5}),
    ] {
        refused(&extra.to_string(), &provision(&cloud, "numbers", COMPOSE, extra.clone()), &[400, 409, 422]);
    }
    assert_eq!(cvms(&cloud), 0, "nothing was created");
}

#[test]
fn commits_that_are_refused() {
    let cloud = Cloud::simulated(1);
    let provisioned = provision(&cloud, "just-once", COMPOSE, json!({})).ok().expect("provisioned");
    for change in [
        json!({"app_id": "00".repeat(20)}),
        json!({"compose_hash": "00".repeat(32)}),
        json!({"app_id": null}),
        json!({"app_id": 5}),
    ] {
        let mut body = json!({"app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"]});
        body.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        let answer = cloud.client.post("/api/v1/cvms", Some(&body)).expect("the server answers");
        refused(&change.to_string(), &answer, &[400, 404, 409, 422, 466]);
    }
    for env in ["zz", "00", &"ab".repeat(257 * 1024)] {
        let answer = cloud.client.commit(&provisioned, Some(env)).expect("the server answers");
        refused(&format!("env of {} digits", env.len()), &answer, &[400, 413, 422]);
    }
    assert_eq!(cvms(&cloud), 0);
    let first = cloud.client.commit(&provisioned, None).and_then(Answer::ok).expect("the first commit");
    let again = cloud.client.commit(&provisioned, None).expect("the server answers");
    if again.status < 300 {
        // A client that lost the first answer gets it again.
        assert_eq!(again.json()["vm_uuid"], first["vm_uuid"], "no second CVM");
    } else {
        refused("a replayed commit", &again, &[400, 404, 409, 466]);
    }
    assert_eq!(cvms(&cloud), 1, "one CVM");
    let same = provision(&cloud, "just-once", COMPOSE, json!({}));
    if same.status < 300 {
        let second = cloud.client.commit(&same.json(), None).expect("the server answers");
        refused("a second CVM of that name", &second, &[400, 409]);
    } else {
        assert_eq!(refused("a name that is taken", &same, &[400, 409])["error_code"], "ERR-01-004");
    }
}

#[test]
fn queries_that_are_refused() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("queries", SOON);
    for _ in 0..2 {
        let id = cloud.power(&cvm, "restart");
        cloud.done(&id, SOON);
    }
    let path = format!("/api/v1/cvms/{cvm}/operations");
    let get = |path: &str| cloud.client.get(path).expect("the server answers");
    let cursor = get(&format!("{path}?limit=1")).json()["next_cursor"].as_str().expect("a second page").to_owned();
    assert_eq!(get(&format!("{path}?limit=1&cursor={cursor}")).status, 200);
    let other = if cursor.starts_with('A') { 'B' } else { 'A' };
    for bad in [
        format!("{other}{}", &cursor[1..]),
        cursor[..cursor.len() - 2].to_owned(),
        "x".to_owned(),
        format!("{cursor}A"),
    ] {
        refused(&format!("cursor {bad}"), &get(&format!("{path}?limit=1&cursor={bad}")), &[400, 422]);
    }
    // A cursor belongs to the list that it came from.
    refused(
        "another list's cursor",
        &get(&format!("{path}?limit=1&operation_types=create&cursor={cursor}")),
        &[400, 422],
    );
    refused("another view's cursor", &get(&format!("/v1/operations?limit=1&cursor={cursor}")), &[400, 422]);
    for query in ["limit=501", "limit=0", "limit=-1", "limit=ten", "start_time=yesterday", "end_time=2026-13-40"] {
        refused(query, &get(&format!("{path}?{query}")), &[400, 422]);
    }
    for query in ["page=0", "page_size=0", "page_size=100000", "page=x"] {
        let answer = get(&format!("/api/v1/cvms/paginated?{query}"));
        refused(query, &answer, &[400, 422]);
    }
}

#[test]
fn bodies_that_are_refused() {
    let cloud = Cloud::simulated(1);
    let json_type = [("Content-Type", "application/json"), ("X-Phala-Version", "2025-10-28")];
    for body in ["{", "[]", "null", "\"text\"", "{\"name\": \"a\", }", "\u{feff}{}", "{\"compose_file\": {}}"] {
        let answer = cloud.client.send("POST", "/api/v1/cvms/provision", &json_type, Some(body.into()));
        refused(&format!("body {body:?}"), &answer.expect("the server answers"), &[400, 422]);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = cloud.client.send("POST", "/api/v1/cvms/provision", &json_type, Some(deep.into_bytes()));
    refused("100,000 brackets", &answer.expect("the server answers"), &[400, 413, 422]);
    // The server may close the connection before it has read everything; it must not keep what it read.
    let before = holdfast_harness::process::resident(cloud.server.id().expect("it runs")).expect("it runs").0;
    let big = vec![b' '; 100 * 1024 * 1024];
    match cloud.client.send("POST", "/api/v1/cvms/provision", &json_type, Some(big)) {
        Ok(answer) => assert_eq!(answer.status, 413, "{}", answer.text),
        Err(error) => eprintln!("closed early: {error:#}"),
    }
    let after = holdfast_harness::process::resident(cloud.server.id().expect("it runs")).expect("it runs").0;
    assert!(after < before + 32 * 1024 * 1024, "from {before} to {after} bytes");
    assert_eq!(cloud.client.get("/readyz").expect("it answers").status, 200);
}

#[test]
fn callers_that_are_refused() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("access", SOON);
    let paths = [
        "/api/v1/auth/me",
        "/api/v1/cvms/paginated",
        "/v1/operations",
        &format!("/api/v1/cvms/{cvm}"),
        "/holdfast/v1/operations/x",
    ];
    for key in ["", "phak_wrong", "key with spaces", &format!("{}x", cloud.client.key)] {
        let stranger = holdfast_harness::client::Client::new(cloud.client.base.clone(), "");
        for path in paths {
            let headers: &[(&str, &str)] = if key.is_empty() { &[] } else { &[("X-API-Key", key)] };
            refused(path, &stranger.send("GET", path, headers, None).expect("the server answers"), &[401]);
        }
    }
    let bearer = format!("Bearer {}", cloud.client.key);
    let stranger = holdfast_harness::client::Client::new(cloud.client.base.clone(), "");
    let answer = stranger.send("GET", "/api/v1/auth/me", &[("Authorization", &bearer)], None).expect("it answers");
    assert_eq!(answer.status, 200);
    for path in ["/api/v1/cvms/no-such-cvm", "/api/v1/nothing", "/v1/operations/00000000-0000-4000-8000-000000000000"] {
        refused(path, &cloud.client.get(path).expect("the server answers"), &[404]);
    }
    let busy = cloud.client.send("PUT", "/api/v1/auth/me", &[], Some(Vec::new())).expect("the server answers");
    assert_eq!(busy.status, 405);
}
