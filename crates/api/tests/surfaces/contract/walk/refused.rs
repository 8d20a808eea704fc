//! What is refused: for the same reasons of every route, for its own reasons of each, because an operation holds the CVM, and
//! because somebody asks too often.
//!
//! The one rule: a status that the document names for a route is met here, or by what succeeds before; [`super::Seen`] tells.

use axum::body::Body;
use serde_json::{Value, json};

use super::{Ids, READY, Unusual, Walk, routes};
use crate::support::provision;

impl Walk {
    /// What every route refuses, by the statuses that the document names for it.
    pub(super) async fn refusals(&mut self) {
        let narrow = json!({ "name": "narrow", "scopes": ["audit.read"] });
        let narrow =
            self.ask(200, "POST", "/tokens", narrow).await.json()["token"].as_str().expect("a token").to_owned();
        let (here, none) = (self.ids(READY), Ids::none());
        for (method, path, statuses) in routes() {
            let body = self.body(method, path);
            for status in statuses.into_iter().filter(|status| *status >= 400) {
                let (mut ids, mut body, mut unusual) = (&here, body.clone(), Unusual::default());
                let not_text = Ids {
                    cvm: "%FF".into(),
                    app: "%FF".into(),
                    kms: "%FF".into(),
                    team: "%FF".into(),
                    user: "%FF".into(),
                    invitation: "%FF".into(),
                    family: "%FF".into(),
                    key: "%FF".into(),
                    webhook: "%FF".into(),
                    event: "%FF".into(),
                    ..here.clone()
                };
                match status {
                    400 if method == "GET" => ids = &not_text,
                    400 => unusual.headers.push(("idempotency-key", "k".repeat(256))),
                    401 => (ids, unusual.key) = (&none, Some("")),
                    403 => unusual.key = Some(&narrow),
                    // What it does not name in its path it names in a header.
                    404 if !path.contains('{') => unusual.headers.push(("x-holdfast-project", "nowhere".to_owned())),
                    404 => ids = &none,
                    413 => {
                        unusual.headers.push(("idempotency-key", "large".to_owned()));
                        body = "x".repeat(holdfast_api::BODY_LIMIT + 1).into();
                    }
                    415 => unusual.headers.push(("content-type", "multipart/form-data; boundary=x".to_owned())),
                    422 => unusual.version = Some("tomorrow"),
                    // Each has its own cause.
                    _ => continue,
                }
                if status == 400 && method == "GET" && !path.contains('{') {
                    continue;
                }
                self.send(status, method, &ids.path(path), &body, unusual).await;
            }
        }
    }

    /// What is refused because of what it is or asks for.
    pub(super) async fn refusals_with_a_cause(&mut self) {
        let app = self.app.clone();
        let cvm = |rest: &str| format!("/cvms/{READY}{rest}");
        let of_app = |rest: &str| format!("/apps/{app}{rest}");
        let revision = self.ids(READY).revision;
        let large = json!({ "vcpu": 1000 });
        let gpu = json!({ "gpus": { "gpus": [{ "slot": "1" }] } });
        let mut compose = provision("other-app");
        compose["compose_file"]["docker_compose_file"] = "services: {}".into();
        let commit = json!({ "app_id": app, "compose_hash": self.provisioned.0 });
        let no_hash = json!({ "compose_hash": "00".repeat(32) });
        let taken = json!({ "name": "a" });
        let list = json!([]);
        let causes: Vec<(u16, &str, String, Value)> = vec![
            (400, "POST", "/cvms/provision".into(), compose),
            (409, "POST", "/cvms/provision".into(), provision(READY)),
            (422, "POST", "/cvms/provision".into(), provision("1")),
            (422, "POST", "/cvms/provision".into(), list.clone()),
            (409, "POST", "/cvms".into(), commit),
            (422, "POST", "/cvms".into(), json!({ "app_id": "00".repeat(20), "compose_hash": "ab".repeat(32) })),
            (422, "POST", "/cvms".into(), json!({ "app_id": app })),
            (400, "PATCH", cvm(""), gpu),
            (400, "PATCH", cvm(""), large.clone()),
            (422, "PATCH", cvm(""), json!({ "vcpu": "many" })),
            (422, "PATCH", cvm(""), json!({ "shutdown_timeout": 5 })),
            (400, "PATCH", cvm("/resources"), large),
            (400, "PATCH", cvm("/resources"), json!({ "disk_size": 1 })),
            (400, "PATCH", cvm("/resources"), json!({ "vcpu": 4, "allow_restart": 0 })),
            (422, "PATCH", cvm("/resources"), list.clone()),
            (422, "PATCH", cvm("/envs"), json!({ "encrypted_env": "no hex" })),
            (400, "PATCH", cvm("/os-image"), json!({ "os_image_name": "none" })),
            (400, "PATCH", cvm("/docker-compose"), "services: {}".into()),
            (422, "PATCH", cvm("/compose_file"), no_hash),
            (400, "POST", cvm("/compose_file/provision"), json!({ "docker_compose_file": "services: {}" })),
            (422, "PATCH", cvm("/name"), taken),
            (422, "PATCH", cvm("/visibility"), json!({})),
            (409, "POST", cvm("/start"), Value::Null),
            (409, "POST", cvm("/operations/cancel"), Value::Null),
            (422, "POST", cvm("/restart"), list.clone()),
            (422, "GET", cvm("/state?target=running&interval=1"), Value::Null),
            (422, "GET", cvm("/state?target=flying"), Value::Null),
            (400, "GET", cvm("/operations?cursor=none"), Value::Null),
            (422, "GET", cvm("/operations?limit=501"), Value::Null),
            (422, "GET", cvm("/operations?operation_types=none"), Value::Null),
            (422, "GET", "/cvms/paginated?page=0".into(), Value::Null),
            (422, "GET", "/cvms?teepod_id=x".into(), Value::Null),
            (422, "GET", "/apps?page_size=1000".into(), Value::Null),
            (422, "GET", of_app("/events?limit=0"), Value::Null),
            (400, "GET", of_app("/usage?start_date=2020-01-01&end_date=2026-01-01"), Value::Null),
            (422, "GET", of_app("/usage?offset=-1"), Value::Null),
            (422, "GET", of_app("/revisions?page=0"), Value::Null),
            (422, "GET", of_app(&format!("/revisions/{revision}?raw_compose_file=perhaps")), Value::Null),
            (404, "GET", of_app(&format!("/revisions/{revision}")), Value::Null),
            (400, "POST", of_app("/instances"), json!({ "token": "of a chain" })),
            (422, "POST", of_app("/instances"), list.clone()),
            (400, "POST", of_app(&format!("/revisions/{revision}/redeploy?transaction_hash=0x00")), json!({})),
            (404, "POST", of_app(&format!("/revisions/{revision}/redeploy")), json!({})),
            (422, "POST", of_app(&format!("/revisions/{revision}/redeploy")), list.clone()),
            (400, "GET", "/workspaces?cursor=none".into(), Value::Null),
            (400, "POST", "/workspaces/default/leave".into(), Value::Null),
            (422, "POST", "/status/batch".into(), list),
            (422, "GET", "/kms?page=x".into(), Value::Null),
            (422, "GET", "/kms/phala/next_app_id?counts=21".into(), Value::Null),
            (400, "GET", "/kms/phala/pubkey/none".into(), Value::Null),
            (422, "GET", "/os-images?is_dev=perhaps".into(), Value::Null),
            (422, "POST", "/tokens".into(), json!({ "name": "" })),
            (422, "POST", "/tokens".into(), json!({ "name": "a", "expires_in_days": 0 })),
            (422, "POST", "/tokens".into(), json!({ "name": "a", "scopes": ["fly"] })),
            (422, "DELETE", "/tokens/first".into(), Value::Null),
            (422, "POST", "/auth/token".into(), "username=a".into()),
            (422, "POST", "/auth/device/code".into(), json!({ "client_id": "" })),
            (400, "POST", "/auth/logout".into(), Value::Null),
        ];
        for (due, method, path, body) in causes {
            self.ask(due, method, &path, body).await;
        }
        self.busy().await;
    }

    /// While an operation holds the CVM, no other change of it is accepted.
    async fn busy(&mut self) {
        let app = self.app.clone();
        let revisions = self.ask(200, "GET", &format!("/apps/{app}/revisions"), Value::Null).await.json();
        let revision = revisions["revisions"][0]["revision_id"].as_str().expect("a revision").to_owned();
        let ids = Ids { revision, ..self.ids(READY) };
        self.hold(true);
        self.ask(200, "POST", "/cvms/web-app/restart", Value::Null).await;
        for (method, path, statuses) in routes().filter(|(method, ..)| *method != "GET") {
            let changes = path.contains("{cvm_id}") || path.contains("{revision_id}");
            let harmless = NOT_HELD_UP.contains(&path.trim_start_matches("/api/v1/"));
            if changes && !harmless && statuses.contains(&409) {
                self.ask(409, method, &ids.path(path), self.body(method, path)).await;
            }
        }
        self.hold(false);
        self.until_running().await;
        // Like which of the two, before the update or after it?
        self.hold(true);
        let other = json!({ "docker_compose_file": "services:\n  web:\n    image: another\n" });
        self.ask(202, "PATCH", "/cvms/web-app", other).await;
        self.ask(409, "POST", &format!("/apps/{app}/instances"), json!({})).await;
        self.hold(false);
        self.until_running().await;
    }

    /// What counts how often somebody without a key asks.
    pub(super) async fn too_often(&mut self) {
        for path in ["/auth/token", "/auth/device/code"] {
            let mut tries = 0;
            loop {
                let body = self.body("POST", path);
                let request = self.server.without_key().request("POST", path);
                let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
                let answer = self.server.send(request.body(Body::from(text)).expect("a request")).await;
                tries += 1;
                if answer.status == 429 {
                    assert!(answer.headers["retry-after"].to_str().expect("text").parse::<u32>().expect("seconds") > 0);
                    break;
                }
                assert!(tries < 100, "{path} can be asked for ever");
            }
            self.ask(429, "POST", path, self.body("POST", path)).await;
        }
    }
}

/// Mutations that a running operation does not hold up.
const NOT_HELD_UP: [&str; 5] = [
    "cvms/{cvm_id}/operations/cancel",
    "cvms/{cvm_id}/compose_file/provision",
    "cvms/{cvm_id}/scheduled-delete",
    "cvms/{cvm_id}/instance-id",
    "cvms/{cvm_id}/replicas",
];
