//! Who sees what: every route as every role (`walk`), and what only a look at single answers shows.

pub mod guard;
mod projects;
mod table;
mod walk;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use crate::support::{NEWEST, Server, V2025, V2026, provision};

#[tokio::test]
async fn a_key_works_as_bearer_too() {
    let server = Server::start().await;
    for scheme in ["Bearer", "bearer"] {
        let request = Request::get("/api/v1/auth/me").header("authorization", format!("{scheme} {}", server.key));
        assert_eq!(server.send(request.body(Body::empty()).expect("a request")).await.status, 200);
    }
}

/// What only bodies and lists could tell; that paths tell nothing, the walk sees.
#[tokio::test]
async fn lists_and_bodies_show_no_other_workspace() {
    let server = Server::start().await;
    let vm = server.deploy_running("hidden-app").await;
    let key = server.stranger("user").await;
    let stranger = server.with_key(&key);
    let forms =
        [format!("app_{}", vm["app_id"].as_str().expect("an app id")), vm["id"].to_string(), "hidden-app".into()];
    for id in forms {
        assert_eq!(stranger.get(&format!("/cvms/{id}")).await.status, 404, "{id}");
    }
    assert_eq!(stranger.get("/cvms").await.expect(200), json!([]));
    assert_eq!(stranger.get("/cvms/paginated").await.expect(200)["total"], 0);
    assert_eq!(stranger.get("/apps").await.expect(200)["total"], 0);
    assert_eq!(stranger.post("/status/batch", &json!({ "vm_uuids": [vm["vm_uuid"]] })).await.expect(200), json!({}));
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
