//! Who sees what: no key, a foreign workspace, a member who may only read, paths and methods that are not there.

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use crate::support::{NEWEST, Server, V2025, V2026, provision};

const NO_REVISION: &str = "0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e-1";

/// Every route with the ids of one CVM filled in.
fn routes(id: &str, app: &str) -> Vec<(&'static str, String)> {
    let mut routes = vec![
        ("GET", format!("/apps/{app}")),
        ("GET", format!("/apps/{app}/cvms")),
        ("GET", format!("/apps/{app}/device-allowlist")),
        ("POST", format!("/apps/{app}/instances")),
        ("GET", format!("/apps/{app}/events")),
        ("GET", format!("/apps/{app}/usage")),
        ("GET", format!("/apps/{app}/revisions")),
        ("GET", format!("/apps/{app}/revisions/{NO_REVISION}")),
        ("POST", format!("/apps/{app}/revisions/{NO_REVISION}/redeploy")),
        ("POST", format!("/cvms/{id}/revisions/{NO_REVISION}/redeploy")),
        ("POST", format!("/apps/{app}/cvms/{id}/replicas")),
        ("GET", "/workspaces/default".to_owned()),
        ("GET", "/workspaces/default/nodes".to_owned()),
        ("GET", "/workspaces/default/quotas".to_owned()),
        ("GET", format!("/cvms/{id}")),
        ("DELETE", format!("/cvms/{id}")),
    ];
    for rest in ["start", "stop", "shutdown", "restart", "operations/cancel", "replicas"] {
        routes.push(("POST", format!("/cvms/{id}/{rest}")));
    }
    for rest in ["operations", "operation-status", "composition", "state", "compose_file", "docker-compose.yml"] {
        routes.push(("GET", format!("/cvms/{id}/{rest}")));
    }
    for rest in ["stats", "network", "network-config", "ports", "user_config", "attestation"] {
        routes.push(("GET", format!("/cvms/{id}/{rest}")));
    }
    routes.push(("PUT", format!("/cvms/{id}/ports")));
    for rest in ["pre-launch-script", "available-os-images"] {
        routes.push(("GET", format!("/cvms/{id}/{rest}")));
    }
    for rest in ["compose_file", "compose_file/provision"] {
        routes.push(("POST", format!("/cvms/{id}/{rest}")));
    }
    for rest in UPDATES {
        routes.push(("PATCH", format!("/cvms/{id}{rest}")));
    }
    routes
}

const UPDATES: [&str; 13] = [
    "",
    "/scheduled-delete",
    "/instance-id",
    "/compose_file",
    "/docker-compose",
    "/pre-launch-script",
    "/resources",
    "/envs",
    "/visibility",
    "/listed",
    "/name",
    "/os-image",
    "/network-config",
];

/// A body that the route understands.
fn body(path: &str) -> &'static str {
    let bodies = [
        ("/resources", r#"{"vcpu":1}"#),
        ("/envs", r#"{"encrypted_env":"00"}"#),
        ("/visibility", r#"{"public_logs":true,"public_sysinfo":true}"#),
        ("/listed", r#"{"listed":true}"#),
        ("/ports", r#"{"ports":[]}"#),
        ("/name", r#"{"name":"other"}"#),
        ("/os-image", r#"{"os_image_name":"other"}"#),
        ("/compose_file", r#"{"compose_hash":"00","compose_file":{"docker_compose_file":"services: {a: {}}"}}"#),
    ];
    bodies.into_iter().find(|(end, _)| path.ends_with(end)).map_or("{}", |(_, body)| body)
}

const OPEN_TO_ALL_KEYS: [(&str, &str); 22] = [
    ("GET", "/auth/me"),
    ("GET", "/workspaces"),
    ("GET", "/teepods/available"),
    ("GET", "/teepods/cvm-create-resources"),
    ("GET", "/instance-types"),
    ("GET", "/instance-types/cpu"),
    ("GET", "/os-images"),
    ("GET", "/kms"),
    ("GET", "/kms/phala"),
    ("GET", "/kms/phala/info"),
    ("GET", "/kms/phala/nodes"),
    ("GET", "/kms/phala/next_app_id"),
    ("GET", "/kms/phala/pubkey/0000000000000000000000000000000000000000"),
    ("GET", "/apps"),
    ("GET", "/apps/filter-options"),
    ("GET", "/cvms"),
    ("GET", "/cvms/paginated"),
    ("POST", "/status/batch"),
    ("POST", "/cvms"),
    ("POST", "/cvms/provision"),
    ("POST", "/cvms/batch-stop"),
    ("PATCH", "/cvms/instance-ids"),
];

#[tokio::test]
async fn nothing_without_a_key() {
    let server = Server::start().await;
    let mut all = routes("x", "y");
    all.extend(OPEN_TO_ALL_KEYS.map(|(method, path)| (method, path.to_owned())));
    for (method, path) in &all {
        for ask in [server.without_key(), server.with_key("phak_wrong"), server.with_key("")] {
            let answer = server.send(ask.request(method, path).body(Body::from("{}")).expect("a request")).await;
            assert_eq!(answer.headers["www-authenticate"], "Bearer", "{method} {path}");
            let body = answer.expect(401);
            assert!(body["detail"].is_string() && body.get("error_code").is_none(), "{body}");
        }
    }
    // Every route there is, is in the lists above.
    let document = serde_json::to_value(&holdfast_api::documents()[0].1).expect("a document");
    let documented: usize = document["paths"]
        .as_object()
        .expect("paths")
        .values()
        .map(|item| item.as_object().map_or(0, |o| o.len()))
        .sum();
    assert_eq!(documented, all.len());
}

#[tokio::test]
async fn a_key_works_as_bearer_too() {
    let server = Server::start().await;
    for scheme in ["Bearer", "bearer"] {
        let request = Request::get("/api/v1/auth/me").header("authorization", format!("{scheme} {}", server.key));
        assert_eq!(server.send(request.body(Body::empty()).expect("a request")).await.status, 200);
    }
}

#[tokio::test]
async fn another_workspace_does_not_exist() {
    let server = Server::start().await;
    let vm = server.deploy_running("hidden-app").await;
    let key = server.stranger("user").await;
    let ids = [
        vm["vm_uuid"].as_str().expect("a UUID").to_owned(),
        format!("app_{}", vm["app_id"].as_str().expect("an app id")),
        vm["id"].to_string(),
        "hidden-app".to_owned(),
    ];
    for id in &ids {
        for (method, path) in routes(id, vm["app_id"].as_str().expect("an app id")) {
            let request = server.with_key(&key).request(method, &path);
            let answer = server.send(request.body(Body::from(body(&path))).expect("a request")).await;
            assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
        }
    }
    let stranger = server.with_key(&key);
    assert_eq!(stranger.get("/cvms").await.expect(200), json!([]));
    assert_eq!(stranger.get("/cvms/paginated").await.expect(200)["total"], 0);
    assert_eq!(stranger.get("/apps").await.expect(200)["total"], 0);
    assert_eq!(stranger.post("/status/batch", &json!({ "vm_uuids": [ids[0]] })).await.expect(200), json!({}));
    let commit = json!({ "app_id": vm["app_id"], "compose_hash": "ab".repeat(32) });
    assert_eq!(stranger.post("/cvms", &commit).await.expect(422)["message"], "Provision data not found.");
    // The same name is free in a workspace of one's own, whose default version is the key's.
    assert_eq!(stranger.post("/cvms/provision", &provision("hidden-app")).await.status, 200);
    assert_eq!(stranger.get("/auth/me").await.expect(200)["workspace"]["slug"], "elsewhere");
    // The CVM is as it was.
    assert_eq!(server.at(V2026).get("/cvms/hidden-app").await.expect(200)["status"], "running");
}

#[tokio::test]
async fn a_viewer_changes_nothing() {
    let server = Server::start().await;
    let key = server.stranger("user").await;
    server.sql("UPDATE workspace_member SET role = 'viewer' WHERE user_id = 2").await;
    let viewer = server.with_key(&key);
    assert_eq!(viewer.get("/cvms").await.status, 200);
    let refused = viewer.post("/cvms/provision", &provision("some-app")).await.expect(403);
    assert_eq!(refused["error_code"], "ERR-06-006");
    assert_eq!(viewer.post_bytes("/cvms/any/stop", Vec::new()).await.status, 403);
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there() {
    let server = Server::start().await;
    for path in ["/nothing", "/cvms/x/firewall-status", "/kms/on-chain/base", ""] {
        let body = server.at(V2026).get(path).await.expect(404);
        assert!(body["detail"].is_string(), "{path}: {body}");
    }
    for (method, path) in [("DELETE", "/apps"), ("PUT", "/cvms/x"), ("GET", "/cvms/x/start"), ("POST", "/auth/me")] {
        let answer = server.send(server.at(V2026).request(method, path).body(Body::empty()).expect("a request")).await;
        assert!(answer.headers.contains_key("allow"), "{method} {path}");
        assert!(answer.expect(405)["detail"].is_string(), "{method} {path}");
    }
}

#[tokio::test]
async fn versions() {
    let server = Server::start().await;
    // The administrator's key stands for the oldest version, and so do dates before it.
    assert!(server.with_key(&server.key).get("/auth/me").await.expect(200).get("team_name").is_some());
    for version in ["2019-01-01", V2025, "2026-01-20"] {
        assert!(server.at(version).get("/auth/me").await.expect(200).get("team_name").is_some(), "{version}");
    }
    for version in [V2026, NEWEST, "2030-01-01", "latest", "LATEST"] {
        assert!(server.at(version).get("/auth/me").await.expect(200).get("workspace").is_some(), "{version}");
    }
    for version in ["tomorrow", "2026-1-1", "v1"] {
        let body = server.at(version).get("/auth/me").await.expect(422);
        assert_eq!(body["detail"][0]["loc"], json!(["header", "X-Phala-Version"]));
    }
}
