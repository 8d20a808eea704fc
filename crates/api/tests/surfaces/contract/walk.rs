//! One walk over every route in one version: CVMs in all their states, what succeeds, and what is refused.
//!
//! The one rule: what can be asked of any route is asked of every route that our OpenAPI document has. A route that is new
//! is walked at once, and one that cannot be walked without knowing more about it fails here until this file knows.

mod people;
mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::answers::{DOCUMENT, documented};
use crate::support::{Answer, COMPOSE, Server, provision, until};

/// Statuses that were met and held to the contract, by route.
pub type Seen = BTreeMap<String, BTreeSet<u16>>;

const READY: &str = "web-app";
const HOOK: &str = "https://example.com/hook";
const NOWHERE: &str = "0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e";

/// What the parameters of a path stand for.
#[derive(Clone)]
struct Ids {
    cvm: String,
    app: String,
    revision: String,
    kms: String,
    team: String,
    family: String,
    user: String,
    invitation: String,
    token: String,
    key: String,
    webhook: String,
    event: String,
}

impl Ids {
    fn none() -> Self {
        Self {
            cvm: NOWHERE.to_owned(),
            app: "0".repeat(40),
            revision: format!("{NOWHERE}-1"),
            kms: "none".to_owned(),
            team: "elsewhere".to_owned(),
            family: "none".to_owned(),
            user: "usr_none".to_owned(),
            invitation: "1000000".to_owned(),
            token: "999999".to_owned(),
            key: "none".to_owned(),
            webhook: "whk_none".to_owned(),
            event: "evt_none".to_owned(),
        }
    }

    /// `/api/v1/cvms/{cvm_id}` with these ids, from behind `/api/v1`.
    fn path(&self, template: &str) -> String {
        let ids = [
            ("{cvm_id}", &self.cvm),
            ("{vm_uuid}", &self.cvm),
            ("{app_id}", &self.app),
            ("{revision_id}", &self.revision),
            ("{kms_id}", &self.kms),
            ("{team_slug}", &self.team),
            ("{workspace_slug}", &self.team),
            ("{user_id}", &self.user),
            ("{invitation_id}", &self.invitation),
            ("{family}", &self.family),
            ("{token_id}", &self.token),
            ("{key_id}", &self.key),
            ("{webhook_id}", &self.webhook),
            ("{event_id}", &self.event),
        ];
        let path = ids.iter().fold(template.to_owned(), |path, (name, id)| path.replace(name, id));
        assert!(!path.contains('{'), "{path}: the walk knows no such parameter");
        path.strip_prefix("/api/v1").expect("a path of this surface").to_owned()
    }
}

/// A request, where it is not the usual one.
#[derive(Default)]
struct Unusual<'a> {
    key: Option<&'a str>,
    headers: Vec<(&'static str, String)>,
    version: Option<&'a str>,
}

struct Walk {
    server: Server,
    version: Option<&'static str>,
    seen: Seen,
    /// Of an app-compose.json that was provisioned for the CVM, and the file.
    provisioned: (String, Value),
    app: String,
    /// A webhook and an event that was sent to it.
    webhook: (String, String),
}

/// Walks all routes with this version in every request, `None` for none.
pub async fn walk(version: Option<&'static str>) -> Seen {
    let (server, seen) = (Server::start().await, Seen::new());
    let mut walk = Walk {
        server,
        version,
        seen,
        provisioned: (String::new(), Value::Null),
        app: String::new(),
        webhook: Default::default(),
    };
    walk.nothing_there_yet().await;
    walk.credentials().await;
    walk.webhooks().await;
    walk.life().await;
    walk.changes().await;
    walk.several_of_an_app().await;
    walk.failures().await;
    walk.people().await;
    walk.ssh_keys().await;
    walk.refusals().await;
    walk.refusals_with_a_cause().await;
    walk.too_often().await;
    walk.seen
}

/// Every route of the document: its method, its path, and the statuses that it names.
fn routes() -> impl Iterator<Item = (&'static str, &'static str, BTreeSet<u16>)> {
    DOCUMENT.iter().flat_map(|known| {
        known.methods.keys().map(|method| (method.as_str(), known.path.as_str(), known.statuses(method)))
    })
}

fn serves(method: &str, path: &str) -> bool {
    routes().any(|(known, at, _)| (known, at) == (method, path))
}

impl Walk {
    /// Sends a request and insists on its status. That the answer is right, the server's `send` insists on.
    async fn send(&mut self, due: u16, method: &str, path: &str, body: &Value, unusual: Unusual<'_>) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        let key = unusual.key.unwrap_or(&self.server.key);
        if !key.is_empty() {
            request = request.header("x-api-key", key);
        }
        if let Some(version) = unusual.version.or(self.version) {
            request = request.header("x-phala-version", version);
        }
        if !unusual.headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in unusual.headers {
            request = request.header(name, value);
        }
        let body = match body {
            Value::Null => Vec::new(),
            Value::String(text) => text.clone().into_bytes(),
            json => json.to_string().into_bytes(),
        };
        let answer = self.server.send(request.body(Body::from(body)).expect("a request")).await;
        assert_eq!(answer.status.as_u16(), due, "{method} {path} in {:?}: {}", self.version, answer.text());
        let known = documented(&format!("/api/v1{}", path.split('?').next().expect("a path"))).expect("a known path");
        self.seen.entry(format!("{method} {}", known.path)).or_default().insert(due);
        answer
    }

    async fn ask(&mut self, due: u16, method: &str, path: &str, body: Value) -> Answer {
        self.send(due, method, path, &body, Unusual::default()).await
    }

    fn ids(&self, cvm: &str) -> Ids {
        Ids {
            cvm: cvm.to_owned(),
            app: self.app.clone(),
            kms: "phala".to_owned(),
            team: "default".to_owned(),
            family: "cpu".to_owned(),
            webhook: self.webhook.0.clone(),
            event: self.webhook.1.clone(),
            ..Ids::none()
        }
    }

    fn hold(&self, held: bool) {
        self.server.held.store(held, Ordering::Relaxed);
    }

    async fn until_running(&self) {
        self.server.until_status(READY, "running").await;
    }

    /// A body that the route takes.
    fn body(&self, method: &str, path: &str) -> Value {
        let (hash, file) = &self.provisioned;
        match (method, path.trim_start_matches("/api/v1")) {
            ("GET" | "DELETE", _) => Value::Null,
            ("PATCH", "/cvms/{cvm_id}") => json!({ "vcpu": 1.0, "user_config": "words", "unknown": true }),
            ("PATCH", "/cvms/{cvm_id}/resources") => json!({ "vcpu": 2, "memory": 4096, "allow_restart": 1 }),
            ("PATCH", "/cvms/{cvm_id}/envs") => json!({ "encrypted_env": "cd".repeat(64), "env_keys": ["A", "B"] }),
            ("PATCH", "/cvms/{cvm_id}/visibility") => json!({ "public_sysinfo": false, "public_logs": true }),
            ("PATCH", "/cvms/{cvm_id}/listed") => json!({ "listed": true }),
            ("PATCH", "/cvms/{cvm_id}/name") => json!({ "name": READY }),
            ("PATCH", "/cvms/{cvm_id}/os-image") => json!({ "os_image_name": "holdfast-1.2.3" }),
            ("PATCH", "/cvms/{cvm_id}/network-config") => json!({ "gateway_urls": [], "restart": false }),
            ("PUT", "/cvms/{cvm_id}/ports") => json!({ "ports": [{ "vm_port": 8080.0, "protocol": "tcp" }] }),
            ("PATCH", "/cvms/{cvm_id}/docker-compose") => COMPOSE.replace("hello", "goodbye").into(),
            ("PATCH", "/cvms/{cvm_id}/pre-launch-script") => "echo hi".into(),
            ("PATCH", "/cvms/{cvm_id}/compose_file") => json!({ "compose_hash": hash, "encrypted_env": null }),
            ("POST", "/cvms/{cvm_id}/compose_file") => json!({ "compose_hash": hash, "compose_file": file }),
            ("POST", "/cvms/{cvm_id}/compose_file/provision") => json!({ "docker_compose_file": COMPOSE }),
            ("PATCH", "/cvms/{cvm_id}/scheduled-delete") => json!({ "scheduled_delete_at": "2100-01-01T00:00:00Z" }),
            ("PATCH", "/cvms/{cvm_id}/instance-id" | "/cvms/instance-ids") => json!({ "dry_run": true }),
            ("POST", "/cvms/batch-stop") => json!({ "cvm_ids": [] }),
            ("POST", "/cvms") => json!({ "app_id": self.app, "compose_hash": "ab".repeat(32) }),
            ("POST", "/cvms/provision") => provision("other-app"),
            ("POST", "/user/ssh-keys") => json!({ "name": "laptop", "public_key": crate::ssh_keys::key(1) }),
            ("POST", "/user/ssh-keys/github-profile") => json!({ "github_username": "octocat" }),
            ("POST", "/workspace/webhooks") => json!({ "url": HOOK, "events": ["cvm.created"], "name": null }),
            ("PUT", "/workspace/webhooks/{webhook_id}") => json!({ "name": "ours", "url": null }),
            ("POST", "/status/batch") => json!({ "vm_uuids": [NOWHERE] }),
            ("POST", "/workspaces/check-slug") => json!({ "slug": "free-slug" }),
            ("POST", "/workspaces/{workspace_slug}/invitations") => json!({ "email": "a@b.c", "role": "member" }),
            ("PATCH", "/workspaces/{workspace_slug}/members/{user_id}") => json!({ "role": "reader" }),
            ("POST", "/tokens") => json!({ "name": "walked", "expires_in_days": 30, "scopes": ["read"] }),
            ("POST", "/auth/token") => "username=nobody&password=nothing".into(),
            ("POST", "/auth/device/code") => json!({ "client_id": "walk" }),
            ("POST", "/auth/device/token") => json!({ "device_code": "none" }),
            ("POST", _) => json!({}),
            _ => panic!("{method} {path}: the walk knows no body for it"),
        }
    }

    /// Every list and every other route without an id.
    async fn nothing_there_yet(&mut self) {
        for (method, path, _) in routes().filter(|(method, path, _)| *method == "GET" && !path.contains("_id}")) {
            self.ask(200, method, &self.ids("").path(path), Value::Null).await;
        }
        for path in ["/kms?is_onchain=true", "/os-images?is_dev=true", "/kms/phala/next_app_id?counts=20"] {
            self.ask(200, "GET", path, Value::Null).await;
        }
    }

    /// Everything that can be read of a CVM and of its app.
    async fn look(&mut self, cvm: &str) {
        let mut ids = self.ids(cvm);
        let list = self.ask(200, "GET", &format!("/apps/{}/revisions", ids.app), Value::Null).await.json();
        ids.revision = list["revisions"][0]["revision_id"].as_str().unwrap_or(&ids.revision).to_owned();
        for (_, path, _) in routes().filter(|(method, _, _)| *method == "GET") {
            self.ask(200, "GET", &ids.path(path), Value::Null).await;
        }
        let detail = self.ask(200, "GET", &format!("/cvms/{cvm}"), Value::Null).await.json();
        let uuid = detail["vm_uuid"].as_str().expect("a UUID").to_owned();
        let body = json!({ "vm_uuids": [uuid, uuid.replace('-', ""), NOWHERE] });
        self.ask(200, "POST", "/status/batch", body).await;
        self.ask(200, "GET", &format!("/cvms/{cvm}/compose_file?raw"), Value::Null).await;
        let raw = format!("/apps/{}/revisions/{}?raw_compose_file=true", ids.app, ids.revision);
        self.ask(200, "GET", &raw, Value::Null).await;
        if detail["in_progress"] == false {
            let status = detail["status"].as_str().expect("a status");
            self.ask(200, "GET", &format!("/cvms/{cvm}/state?target={status}&timeout=10"), Value::Null).await;
        }
    }

    /// Provisions and commits an app with an env value.
    async fn deploy(&mut self, name: &str) -> Value {
        let mut wanted = provision(name);
        wanted["compose_file"]["allowed_envs"] = json!(["A"]);
        let provisioned = self.ask(200, "POST", "/cvms/provision", wanted).await.json();
        let commit = json!({
            "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"],
            "encrypted_env": "ab".repeat(64), "env_keys": ["A"],
        });
        let created = self.ask(200, "POST", "/cvms", commit.clone()).await.json();
        // Repeated, it answers what it made.
        let again = self.ask(200, "POST", "/cvms", commit).await.json();
        assert_eq!(created["vm_uuid"], again["vm_uuid"]);
        self.app = created["app_id"].as_str().expect("an app id").to_owned();
        created
    }

    /// A CVM from its creation on: running, in an operation, stopped.
    async fn life(&mut self) {
        self.hold(true);
        self.deploy(READY).await;
        self.look(READY).await;
        self.hold(false);
        self.until_running().await;
        self.look(READY).await;
        self.hold(true);
        let restarted = self.ask(200, "POST", "/cvms/web-app/restart", json!({ "force": false })).await.json();
        assert_eq!(restarted["status"], "restarting");
        self.look(READY).await;
        self.hold(false);
        self.until_running().await;
        self.ask(200, "POST", "/cvms/web-app/stop", Value::Null).await;
        self.server.until_status(READY, "stopped").await;
        self.look(READY).await;
        self.ask(200, "POST", "/cvms/web-app/start", Value::Null).await;
        self.until_running().await;
    }

    /// Every change of a running CVM, first as a dry run.
    async fn changes(&mut self) {
        let ids = self.ids(READY);
        let file = json!({ "name": READY, "docker_compose_file": COMPOSE.replace("hello", "other") });
        let hash = self.ask(200, "POST", "/cvms/web-app/compose_file/provision", file.clone()).await.json();
        self.provisioned = (hash["compose_hash"].as_str().expect("a hash").to_owned(), file);
        let revisions = self.ask(200, "GET", &format!("/apps/{}/revisions", self.app), Value::Null).await.json();
        let revision = revisions["revisions"][0]["revision_id"].as_str().expect("a revision").to_owned();
        let ids = Ids { revision, ..ids };
        for (method, path, statuses) in routes() {
            let of_a_cvm = path.contains("{cvm_id}") || path.contains("{revision_id}");
            let Some(due) = statuses.iter().find(|status| matches!(status, 201..300)) else { continue };
            if method == "GET" || method == "DELETE" || !of_a_cvm {
                continue;
            }
            let (filled, body) = (ids.path(path), self.body(method, path));
            if statuses.contains(&200) {
                self.ask(200, method, &format!("{filled}?dry_run=true"), body.clone()).await;
            }
            self.ask(*due, method, &filled, body).await;
            self.until_running().await;
        }
        for (method, path) in [
            ("PATCH", "{cvm_id}/visibility"),
            ("PATCH", "{cvm_id}/listed"),
            ("PATCH", "{cvm_id}/scheduled-delete"),
            ("PATCH", "{cvm_id}/instance-id"),
            ("PATCH", "instance-ids"),
            ("PATCH", "{cvm_id}/network-config"),
            ("PUT", "{cvm_id}/ports"),
        ] {
            let path = format!("/api/v1/cvms/{path}");
            if serves(method, &path) {
                self.ask(200, method, &ids.path(&path), self.body(method, &path)).await;
                self.until_running().await;
            }
        }
        for path in ["{cvm_id}/shutdown", "batch-stop"] {
            let path = format!("/api/v1/cvms/{path}");
            if serves("POST", &path) {
                let detail = self.ask(200, "GET", "/cvms/web-app", Value::Null).await.json();
                self.ask(200, "POST", &ids.path(&path), json!({ "cvm_ids": [detail["vm_uuid"]] })).await;
                self.server.until_status(READY, "stopped").await;
                self.ask(200, "POST", "/cvms/web-app/start", Value::Null).await;
                self.until_running().await;
            }
        }
        self.look(READY).await;
    }

    /// A second CVM of the app: the app's id names none of them any more.
    async fn several_of_an_app(&mut self) {
        let second = self.ask(200, "POST", &format!("/apps/{}/instances", self.app), json!({})).await.json();
        self.until_second(&second).await;
        let uuid = second["vm_uuid"].as_str().expect("a UUID").to_owned();
        self.look(&uuid).await;
        let ids = self.ids(&format!("app_{}", self.app));
        let names_one = |path: &str| path.contains("{cvm_id}") || path.contains("{vm_uuid}");
        for (method, path, _) in routes().filter(|(_, path, _)| names_one(path)) {
            let answer = self.ask(409, method, &ids.path(path), self.body(method, path)).await.json();
            assert_eq!(answer["error_code"], "ERR-03-010", "{method} {path}");
        }
        for path in ["/api/v1/cvms/{cvm_id}/replicas", "/api/v1/apps/{app_id}/cvms/{vm_uuid}/replicas"] {
            if serves("POST", path) {
                let replica = self.ask(200, "POST", &self.ids(&uuid).path(path), Value::Null).await.json();
                self.until_second(&replica).await;
                let path = format!("/cvms/{}", replica["vm_uuid"].as_str().expect("a UUID"));
                self.ask(204, "DELETE", &path, Value::Null).await;
                let server = &self.server;
                until("it is gone", async || server.at("LATEST").get(&path).await.status == 404).await;
            }
        }
        self.ask(204, "DELETE", &format!("/cvms/{uuid}"), Value::Null).await;
        let server = &self.server;
        until("the second CVM is gone", async || server.at("LATEST").get(&format!("/cvms/{uuid}")).await.status == 404)
            .await;
        // What is gone is told of by its operations alone.
        self.ask(404, "GET", &format!("/cvms/{uuid}"), Value::Null).await;
        self.ask(200, "GET", &format!("/cvms/{uuid}/operations"), Value::Null).await;
        self.look(READY).await;
    }

    async fn until_second(&self, second: &Value) {
        let path = format!("/cvms/{}", second["vm_uuid"].as_str().expect("a UUID"));
        let server = &self.server;
        until("the second CVM runs", async || {
            let cvm = server.at("LATEST").get(&path).await.expect(200);
            cvm["status"] == "running" && cvm["in_progress"] == false
        })
        .await;
    }

    /// A CVM whose app does not come up, one that ended by itself, and a creation that is cancelled.
    async fn failures(&mut self) {
        let app = self.app.clone();
        self.server.fails_boot.store(true, Ordering::Relaxed);
        self.deploy("sick-app").await;
        self.server.until_status("sick-app", "error").await;
        self.look("sick-app").await;
        self.ask(200, "DELETE", "/cvms/sick-app?dry_run=true", Value::Null).await;
        self.hold(true);
        self.ask(204, "DELETE", "/cvms/sick-app", Value::Null).await;
        self.look("sick-app").await;
        self.hold(false);
        let server = &self.server;
        until("it is gone", async || server.at("LATEST").get("/cvms/sick-app").await.status == 404).await;
        // The app is found for ever.
        for (_, path, _) in routes().filter(|(method, path, _)| *method == "GET" && path.ends_with("{app_id}")) {
            self.ask(200, "GET", &self.ids("").path(path), Value::Null).await;
        }
        self.hold(true);
        self.deploy("gone-app").await;
        let cancelled = self.ask(200, "POST", "/cvms/gone-app/operations/cancel", Value::Null).await.json();
        assert_eq!(cancelled["cancelled"], true);
        self.hold(false);
        let server = &self.server;
        until("it is gone", async || server.at("LATEST").get("/cvms/gone-app").await.status == 404).await;
        self.app = app;
    }
}
