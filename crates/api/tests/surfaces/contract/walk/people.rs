//! What belongs to people and workspaces and not to CVMs: tokens and logins, webhooks, members, SSH keys.
//!
//! The one rule: each makes what it needs. Of all of it only one webhook, with the event that was sent to it, is looked at again.

use serde_json::{Value, json};

use super::{HOOK, Unusual, Walk, routes};

impl Walk {
    /// Tokens, and what logins give.
    pub(super) async fn credentials(&mut self) {
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

    /// A webhook from its creation to its deletion, and one that stays.
    pub(super) async fn webhooks(&mut self) {
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

    /// Who comes to the workspace, and who goes.
    pub(super) async fn people(&mut self) {
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
    pub(super) async fn ssh_keys(&mut self) {
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
}
