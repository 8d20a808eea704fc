//! One walk over every route in one version: CVMs in all their states, what succeeds, and what is refused.
//!
//! The one rule: what can be asked of any route is asked of every route that our OpenAPI document has. A route that is new
//! is walked at once, and one that cannot be walked without knowing more about it fails here until this file knows.

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

    /// Tokens, and what logins give.
    async fn credentials(&mut self) {
        let token = self.ask(200, "POST", "/tokens", self.body("POST", "/tokens")).await.json();
        self.ask(200, "GET", "/tokens", Value::Null).await;
        self.ask(200, "GET", "/tokens?all_workspaces=true", Value::Null).await;
        let path = format!("/tokens/{}", token["id"]);
        for (path, body) in [("/tokens", json!({ "name": "once" })), (&*format!("{path}/refresh"), json!({}))] {
            for due in [200, 409] {
                let headers = vec![("idempotency-key", format!("once-{}", body["name"]))];
                self.send(due, "POST", path, &body, Unusual { headers, ..Unusual::default() }).await;
            }
        }
        self.ask(204, "DELETE", &path, Value::Null).await;

        let (store, clock) = (&self.server.control.store, &holdfast_control::SystemClock);
        assert!(holdfast_control::passwords::set(store, clock, "admin", "walking the line").await.expect("a password"));
        let form = Value::from("grant_type=password&username=admin&password=walking+the+line");
        let once = || Unusual { headers: vec![("idempotency-key", "login".to_owned())], ..Unusual::default() };
        let token = self.send(200, "POST", "/auth/token", &form, once()).await.json();
        self.send(409, "POST", "/auth/token", &form, once()).await;
        let key = token["access_token"].as_str();
        self.send(200, "POST", "/auth/logout", &Value::Null, Unusual { key, ..Unusual::default() }).await;
        self.send(401, "GET", "/auth/authenticated", &Value::Null, Unusual { key, ..Unusual::default() }).await;

        let device =
            self.ask(200, "POST", "/auth/device/code", json!({ "client_id": "walk", "scope": "any" })).await.json();
        let body = json!({ "device_code": device["device_code"] });
        self.ask(400, "POST", "/auth/device/token", body.clone()).await;
        let who = self.server.control.authenticate(&self.server.key).await.expect("the administrator");
        let code = device["user_code"].as_str().expect("a code");
        let info = crate::credentials::info();
        assert!(self.server.control.device_decide(&who, &info, code, true, None).await.is_ok());
        self.ask(200, "POST", "/auth/device/token", body.clone()).await;
        assert_eq!(self.ask(400, "POST", "/auth/device/token", body).await.json()["detail"]["error"], "invalid_grant");
    }

    /// What counts how often somebody without a key asks.
    async fn too_often(&mut self) {
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

    /// Every list and every other route without an id.
    async fn nothing_there_yet(&mut self) {
        for (method, path, _) in routes().filter(|(method, path, _)| *method == "GET" && !path.contains("_id}")) {
            self.ask(200, method, &self.ids("").path(path), Value::Null).await;
        }
        for path in ["/kms?is_onchain=true", "/os-images?is_dev=true", "/kms/phala/next_app_id?counts=20"] {
            self.ask(200, "GET", path, Value::Null).await;
        }
    }

    /// A webhook from its creation to its deletion, and one that stays.
    async fn webhooks(&mut self) {
        let (create, one) = ("/api/v1/workspace/webhooks", "/api/v1/workspace/webhooks/{webhook_id}");
        for _ in 0..2 {
            let made = self.ask(201, "POST", "/workspace/webhooks", self.body("POST", create)).await.json();
            self.webhook.0 = made["id"].as_str().expect("an id").to_owned();
            let path = self.ids("").path(one);
            let sent = self.ask(200, "POST", &format!("{path}/test"), Value::Null).await.json();
            self.webhook.1 = sent["event_id"].as_str().expect("an id").to_owned();
            let ids = self.ids("");
            for (method, route, _) in routes().filter(|(_, route, _)| route.starts_with(one)) {
                if method != "DELETE" {
                    self.ask(200, method, &ids.path(route), self.body(method, route)).await;
                }
            }
            self.ask(200, "PUT", &path, json!({ "enabled": false })).await;
            self.ask(409, "POST", &format!("{path}/test"), Value::Null).await;
            self.ask(409, "POST", &format!("{path}/deliveries/{}/resend", self.webhook.1), Value::Null).await;
            self.ask(200, "PUT", &path, json!({ "enabled": true, "events": ["cvm.deleted", "operation.failed"] }))
                .await;
            let key = || Unusual { headers: vec![("idempotency-key", "rotated".to_owned())], ..Unusual::default() };
            let rotate = format!("{path}/rotate-secret");
            if !self.seen.contains_key("DELETE /api/v1/workspace/webhooks/{webhook_id}") {
                self.send(200, "POST", &rotate, &Value::Null, key()).await;
                self.send(409, "POST", &rotate, &Value::Null, key()).await;
                self.ask(204, "DELETE", &path, Value::Null).await;
                self.ask(404, "GET", &path, Value::Null).await;
            }
        }
        let key = || Unusual { headers: vec![("idempotency-key", "made".to_owned())], ..Unusual::default() };
        let body = self.body("POST", create);
        self.send(201, "POST", "/workspace/webhooks", &body, key()).await;
        self.send(409, "POST", "/workspace/webhooks", &body, key()).await;
        self.ask(422, "POST", "/workspace/webhooks", json!({ "url": HOOK, "events": ["none"] })).await;
        self.ask(422, "PUT", &self.ids("").path(one), json!({ "url": "http://127.0.0.1/" })).await;
        self.ask(422, "GET", &format!("{}/deliveries?limit=0", self.ids("").path(one)), Value::Null).await;
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

    /// Who comes to the workspace, and who goes.
    async fn people(&mut self) {
        let here = "/workspaces/default";
        self.ask(200, "POST", "/workspaces/check-slug", json!({ "slug": "free-slug" })).await;
        self.ask(200, "POST", "/workspaces/check-slug", json!({ "slug": "default" })).await;
        let invite = json!({ "email": "a@b.c", "role": "admin" });
        let made = self.ask(200, "POST", &format!("{here}/invitations"), invite.clone()).await.json();
        self.ask(200, "POST", &format!("{here}/invitations/shareable"), json!({})).await;
        self.ask(200, "GET", &format!("{here}/invitations?page=1&page_size=1"), Value::Null).await;
        let path = format!("{here}/invitations/{}", made["id"]);
        self.ask(200, "DELETE", &path, Value::Null).await;
        self.ask(409, "DELETE", &path, Value::Null).await;
        for path in ["invitations", "invitations/shareable"] {
            let path = format!("{here}/{path}");
            for status in [200, 409] {
                let unusual = Unusual { headers: vec![("idempotency-key", path.clone())], ..Unusual::default() };
                self.send(status, "POST", &path, &invite, unusual).await;
            }
        }
        let gone = self.server.member(1, "gone", "reader").await;
        let id = holdfast_control::people::user_id(self.server.number("SELECT MAX(id) FROM user_account").await);
        let member = format!("{here}/members/{id}");
        self.ask(200, "PATCH", &member, json!({ "role": "member" })).await;
        self.ask(200, "GET", &format!("{here}/members?page_size=1"), Value::Null).await;
        let unusual = Unusual { key: Some(&gone), ..Unusual::default() };
        self.send(200, "POST", &format!("{here}/leave"), &Value::Null, unusual).await;
        self.server.member(1, "removed", "reader").await;
        let id = holdfast_control::people::user_id(self.server.number("SELECT MAX(id) FROM user_account").await);
        self.ask(200, "DELETE", &format!("{here}/members/{id}"), Value::Null).await;
    }

    /// Keys of the caller's own, and of a profile.
    async fn ssh_keys(&mut self) {
        let keys = "/user/ssh-keys";
        let body = |walk: &Self, path: &str| walk.body("POST", path);
        let made = self.ask(201, "POST", keys, body(self, keys)).await.json();
        self.ask(400, "POST", keys, body(self, keys)).await;
        self.ask(422, "POST", keys, json!({ "name": "laptop", "public_key": "none" })).await;
        let profile = format!("{keys}/github-profile");
        self.ask(400, "POST", &profile, body(self, &profile)).await;
        self.server.github.has("octocat", &crate::ssh_keys::key(2));
        self.ask(200, "POST", &profile, body(self, &profile)).await;
        self.ask(422, "POST", &profile, json!({ "github_username": "../octocat" })).await;
        self.ask(200, "POST", &format!("{keys}/github-sync"), Value::Null).await;
        self.ask(200, "GET", keys, Value::Null).await;
        self.ask(204, "DELETE", &format!("{keys}/{}", made["id"].as_str().expect("an id")), Value::Null).await;
    }

    /// What every route refuses, by the statuses that the document names for it.
    async fn refusals(&mut self) {
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
    async fn refusals_with_a_cause(&mut self) {
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
}

/// Mutations that a running operation does not hold up.
const NOT_HELD_UP: [&str; 5] = [
    "cvms/{cvm_id}/operations/cancel",
    "cvms/{cvm_id}/compose_file/provision",
    "cvms/{cvm_id}/scheduled-delete",
    "cvms/{cvm_id}/instance-id",
    "cvms/{cvm_id}/replicas",
];
