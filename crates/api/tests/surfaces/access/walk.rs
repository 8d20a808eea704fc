//! Every route as every role, in the caller's own workspace and from another one.
//!
//! The one rule: nothing is picked. The rows are those of `table.rs`, a test holds them to the documents, and what a caller
//! must get follows from `holdfast_model::access` alone.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use futures_util::StreamExt;
use holdfast_model::access::{self, Action, Role};
use holdfast_store::tenancy::api_key_create;
use serde_json::{Value, json};

use super::table::{self, ROWS, Row};
use crate::support::{Server, V2026, provision};

/// Part of every name in the workspace that is looked into. No answer to anybody else may have it.
pub const MARK: &str = "hushed";

/// Somebody with a key.
struct Person {
    role: Role,
    installation_admin: bool,
    key: String,
}

impl Person {
    fn may(&self, action: Action) -> bool {
        access::allows(self.role, self.installation_admin, action)
    }

    fn name(&self) -> String {
        format!("{}{}", self.role.word(), if self.installation_admin { " who runs the installation" } else { "" })
    }
}

/// What came back.
pub struct Got {
    pub status: u16,
    pub text: String,
}

/// Two workspaces with people of every role: one full of things, one whose people look at them.
pub struct World {
    pub server: Server,
    /// In the order of what they may do.
    members: Vec<Person>,
    strangers: Vec<Person>,
    /// What parameters stand for, by the end of the path up to them: the more of the path, the sooner it counts.
    pub ids: Vec<(&'static str, String)>,
    /// Everything that tells of the workspace.
    pub secrets: BTreeSet<String>,
}

impl World {
    pub async fn new() -> Self {
        let server = Server::start().await;
        // The installation's own workspace becomes the one that is looked into.
        server.execute(&format!("UPDATE workspace SET slug = '{MARK}', name = '{MARK}-name' WHERE id = 1")).await;
        server
            .execute(&format!("UPDATE user_account SET username = '{MARK}-root', email = '{MARK}@example.com'"))
            .await;
        let elsewhere = "INSERT INTO workspace (id, uuid, slug, name, tier, address, next_nonce, created_at)
            VALUES (2, 'a4ad1bd3-6d95-4b3f-9a62-1c6ff4d8f0a2', 'elsewhere', 'elsewhere', 'PRO', '7777777777777777777777777777777777777777', 1, 0);
            INSERT INTO project (uuid, workspace_id, name, is_default, created_at)
            VALUES ('5f6c1f5e-51c2-4f45-8df6-1f4a3e7a9b11', 2, 'default', TRUE, 0);";
        server.execute(elsewhere).await;
        let members = people(&server, 1, MARK).await;
        let strangers = people(&server, 2, "passer").await;

        let first = server.deploy_running(&format!("{MARK}-one")).await;
        let second = server.deploy_running(&format!("{MARK}-two")).await;
        let (uuid, app) = (text(&first["vm_uuid"]), text(&first["app_id"]));
        let page = server.at(V2026).get(&format!("/apps/{app}/revisions")).await.expect(200);
        let operations = server.at(V2026).any("GET", "/holdfast/v1/operations", NONE).await.expect(200);
        let audit = server.at(V2026).any("GET", "/holdfast/v1/audit-logs", NONE).await.expect(200);
        let tokens = server.at(V2026).any("GET", "/holdfast/v1/node-tokens", NONE).await.expect(200);
        let token = server.with_key(&members[0].key).post("/tokens", &json!({ "name": "walked" })).await.expect(200);
        let operation = text(&operations["items"][0]["id"]);
        // Of whoever asks first: it is theirs and nobody else's in the workspace.
        let key = json!({ "name": format!("{MARK}-key"), "public_key": crate::ssh_keys::key(9) });
        let key = server.with_key(&members[0].key).post("/user/ssh-keys", &key).await.expect(201);
        let entry = text(&audit["items"][0]["id"]);
        let invite = json!({ "email": format!("{MARK}-guest@example.com"), "role": "member" });
        let invitation = server.at(V2026).post(&format!("/workspaces/{MARK}/invitations"), &invite).await.expect(200);
        // The code is one that was, so that it is found and nobody comes in with it.
        let code = text(&invitation["token"]);
        let invitation = server.at(V2026).post(&format!("/workspaces/{MARK}/invitations"), &invite).await.expect(200);
        let member = server.number(&format!("SELECT id FROM user_account WHERE username = '{MARK}-member-user'")).await;
        let member = holdfast_control::people::user_id(member);
        let hook = json!({ "url": HOOK, "events": ["cvm.created"], "name": format!("{MARK}-hook") });
        let hook = server.at(V2026).post("/workspace/webhooks", &hook).await.expect(201);
        let hook = text(&hook["id"]);
        let told = server.at(V2026).post(&format!("/workspace/webhooks/{hook}/test"), &Value::Null).await.expect(200);
        let project =
            server.holdfast("POST", "/projects", &json!({ "name": format!("{MARK}-project") })).await.expect(201);
        let ids = vec![
            ("{project}", text(&project["id"])),
            ("{webhook_id}", hook),
            ("{event_id}", text(&told["event_id"])),
            ("/holdfast/v1/operations/{id}", operation.clone()),
            ("/holdfast/v1/audit-logs/{id}", entry.clone()),
            ("/holdfast/v1/node-tokens/{id}", text(&tokens["items"][0]["id"])),
            ("/v1/compute/vms/{vm_id}", text(&second["vm_uuid"])),
            ("{operation_id}", operation),
            ("{audit_log_id}", entry),
            ("{cvm_id}", uuid.clone()),
            ("{vm_uuid}", uuid.clone()),
            ("{cvm}", uuid),
            ("{container}", "web".to_owned()),
            ("{app_id}", app),
            ("{revision_id}", text(&page["revisions"][0]["revision_id"])),
            ("{team_slug}", MARK.to_owned()),
            ("{workspace_slug}", MARK.to_owned()),
            ("{workspace}", MARK.to_owned()),
            ("{user_id}", member.clone()),
            ("{user}", member),
            ("{invitation_id}", invitation["id"].to_string()),
            ("the code", code),
            ("{kms_id}", "phala".to_owned()),
            ("{family}", "cpu".to_owned()),
            // Of whoever comes first: nobody else has it.
            ("{token_id}", token["id"].to_string()),
            ("{key_id}", text(&key["id"])),
        ];
        let mut secrets = server.names_of_workspace(1).await;
        secrets.insert(MARK.to_owned());
        Self { server, members, strangers, ids, secrets }
    }

    /// The path with what its parameters stand for.
    pub fn path(&self, row: &Row) -> String {
        let mut path = String::new();
        let mut known = String::new();
        for segment in row.path.split('/').skip(1) {
            known = format!("{known}/{segment}");
            let id = self.ids.iter().find(|(end, _)| known.ends_with(end)).map(|(_, id)| id.as_str());
            assert!(id.is_some() || !segment.contains('{'), "{}: World::new does not know {segment}", row.path);
            let value = if segment.contains('{') { id.unwrap_or_default() } else { segment };
            path = format!("{path}/{value}");
        }
        path
    }

    pub fn id(&self, name: &str) -> &str {
        &self.ids.iter().find(|(known, _)| *known == name).expect("a known id").1
    }

    /// A body with which the request comes as far as its ids. Where the path has none, the body names the workspace's.
    pub fn body(&self, row: &Row) -> Value {
        let (cvm, app) = (self.id("{cvm_id}"), self.id("{app_id}"));
        let path = row.path.trim_start_matches("/api/v1");
        match (row.method, path) {
            ("GET" | "DELETE", _) => Value::Null,
            ("PATCH", "/cvms/{cvm_id}/resources") => json!({ "vcpu": 1 }),
            ("PATCH", "/cvms/{cvm_id}/envs") => json!({ "encrypted_env": "00" }),
            ("PATCH", "/cvms/{cvm_id}/visibility") => json!({ "public_logs": true, "public_sysinfo": true }),
            ("PATCH", "/cvms/{cvm_id}/listed") => json!({ "listed": true }),
            ("PUT", "/cvms/{cvm_id}/ports") => json!({ "ports": [] }),
            ("PATCH", "/cvms/{cvm_id}/name") => json!({ "name": "other-name" }),
            ("PATCH", "/cvms/{cvm_id}/os-image") => json!({ "os_image_name": "other" }),
            (_, "/cvms/{cvm_id}/compose_file") => {
                json!({ "compose_hash": "00", "compose_file": { "docker_compose_file": "services: {a: {}}" } })
            }
            ("PATCH", "/cvms/instance-ids") => json!({ "cvm_ids": [cvm], "dry_run": true }),
            ("POST", "/cvms/batch-stop") => json!({ "cvm_ids": [cvm] }),
            ("POST", "/user/ssh-keys") => json!({ "name": "mine", "public_key": crate::ssh_keys::key(1) }),
            ("POST", "/user/ssh-keys/github-profile") => json!({ "github_username": "nobody" }),
            ("POST", "/workspace/webhooks") => json!({ "url": HOOK, "events": ["cvm.created"] }),
            ("POST", "/status/batch") => json!({ "vm_uuids": [cvm] }),
            ("POST", "/cvms") => json!({ "app_id": app, "compose_hash": "ab".repeat(32) }),
            ("POST", "/cvms/provision") => provision("some-other-app"),
            ("POST", "/workspaces/check-slug") => json!({ "slug": "free-slug" }),
            ("POST", "/workspaces/{workspace_slug}/invitations") => {
                json!({ "email": "a@example.com", "role": "reader" })
            }
            ("PATCH", "/workspaces/{workspace_slug}/members/{user_id}") => json!({ "role": "reader" }),
            ("PUT", "/holdfast/v1/workspaces/{workspace}/members/{user}") => json!({ "role": "reader" }),
            ("POST", "/holdfast/v1/invitations/accept") => json!({ "code": self.id("the code") }),
            ("POST", "/holdfast/v1/users") => json!({ "username": "walker", "email": "w@example.com" }),
            ("POST", "/holdfast/v1/workspaces") => json!({ "slug": "walked", "owner": self.id("{user}") }),
            ("POST", "/tokens" | "/holdfast/v1/node-tokens" | "/holdfast/v1/projects")
            | ("PATCH", "/holdfast/v1/projects/{project}") => json!({ "name": "walked" }),
            _ => json!({}),
        }
    }

    async fn send(&self, row: &Row, key: Option<&str>) -> Got {
        self.send_to(row, &self.path(row), key).await
    }

    /// The same to another path of the row's.
    pub async fn send_to(&self, row: &Row, path: &str, key: Option<&str>) -> Got {
        let body = match self.body(row) {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let mut request = Request::builder().method(row.method).uri(path);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let request = request.header("content-type", "application/json").body(Body::from(body)).expect("a request");
        if STREAMS.contains(&row.path) {
            let response = self.server.open(request).await;
            let status = response.status().as_u16();
            // What is there at once; more may never come.
            let mut body = response.into_body().into_data_stream();
            let mut text = String::new();
            while let Some(Some(Ok(piece))) = futures_util::FutureExt::now_or_never(body.next()) {
                text.push_str(&String::from_utf8_lossy(&piece));
            }
            return Got { status, text };
        }
        let answer = self.server.send(request).await;
        Got { status: answer.status.as_u16(), text: answer.text() }
    }

    /// Everybody has the role and the key again that they began with.
    pub async fn restore(&self) {
        self.server
            .execute(
                "INSERT INTO workspace_member (workspace_id, user_id, role)
                    SELECT k.workspace_id, k.user_id, k.name FROM api_key k WHERE k.prefix = 'phak_walk'
                    ON CONFLICT (workspace_id, user_id) DO UPDATE SET role = excluded.role;
                 UPDATE user_account SET disabled_at = NULL;
                 UPDATE workspace SET disabled_at = NULL;
                 UPDATE api_key SET revoked_at = NULL, expires_at = NULL WHERE prefix = 'phak_walk' OR name = 'walked';",
            )
            .await;
    }
}

const NONE: (&str, &str) = ("", "");

const HOOK: &str = "https://example.com/hook";

/// Answers that end when the reader does.
const STREAMS: [&str; 1] = ["/holdfast/v1/operations/stream"];

/// One of every role, and a reader who runs the installation; their names begin with `name`.
async fn people(server: &Server, workspace: i64, name: &str) -> Vec<Person> {
    let mut people = Vec::new();
    for (role, installation_admin) in Role::ALL.map(|role| (role, false)).into_iter().chain([(Role::Reader, true)]) {
        let (word, admin) = (role.word(), if installation_admin { "admin" } else { "user" });
        let user = format!("{name}-{word}-{admin}");
        server
            .execute(&format!(
                "INSERT INTO user_account (uuid, username, email, role, created_at)
                 VALUES ('{}', '{user}', '{user}@example.com', '{admin}', 0);
                 INSERT INTO workspace_member (workspace_id, user_id, role)
                 SELECT {workspace}, id, '{word}' FROM user_account WHERE username = '{user}';",
                uuid::Uuid::new_v4()
            ))
            .await;
        let key = format!("phak_{user}");
        let hash = holdfast_control::identity::secret_hash(&key);
        let id = server.number(&format!("SELECT id FROM user_account WHERE username = '{user}'")).await;
        let mut tx = server.control.store.begin().await.expect("a transaction");
        api_key_create(&mut tx, (id, workspace), word, "phak_walk", &hash, V2026, server.control.now())
            .await
            .expect("a key");
        holdfast_store::commit(tx).await.expect("a commit");
        people.push(Person { role, installation_admin, key });
    }
    people
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Rows in an order in which what is needed is still there: reads, changes, deletions.
pub fn rows() -> Vec<&'static Row> {
    let mut rows: Vec<&Row> = ROWS.iter().collect();
    rows.sort_by_key(|row| match row.method {
        "GET" => 0,
        "DELETE" => 2,
        _ => 1,
    });
    rows
}

#[test]
fn every_route_has_a_row_and_every_row_a_route() {
    let mut documented: Vec<_> = table::documented();
    let mut listed: Vec<_> = ROWS.iter().map(|row| (row.method.to_owned(), row.path.to_owned())).collect();
    documented.sort();
    listed.sort();
    let missing: Vec<_> = documented.iter().filter(|route| !listed.contains(route)).collect();
    assert!(missing.is_empty(), "tests/surfaces/access/table.rs has no row for {missing:?}");
    let idle: Vec<_> = listed.iter().filter(|row| !documented.contains(row)).collect();
    assert!(idle.is_empty(), "no document has {idle:?}");
    assert!(listed.windows(2).all(|pair| pair[0] != pair[1]), "a route has two rows");
}

/// Without a key, or with one that is none, nothing is answered but that.
#[tokio::test]
async fn nothing_without_a_key() {
    let world = World::new().await;
    for row in rows().into_iter().filter(|row| row.action.is_some()) {
        for key in [None, Some("phak_wrong"), Some("")] {
            let got = world.send(row, key).await;
            assert_eq!(got.status, 401, "{} {} with {key:?}: {}", row.method, row.path, got.text);
            assert!(!got.text.contains(MARK), "{} {}: {}", row.method, row.path, got.text);
        }
    }
}

/// What a workspace has does not exist for anybody else, whatever their role is where they belong.
#[tokio::test]
async fn another_workspace_does_not_exist() {
    let world = World::new().await;
    let before = world.server.tables_of_workspace(1).await;
    for row in rows() {
        let Some(action) = row.action else { continue };
        let (path, body) = (world.path(row), world.body(row).to_string());
        for person in &world.strangers {
            let got = world.send(row, Some(&person.key)).await;
            let about =
                format!("{} {path} as a {} of elsewhere: {} {}", row.method, person.name(), got.status, got.text);
            // Who runs the installation sees all of it, where that is what the route is for.
            let told = person.installation_admin && (row.seen_by_admin || action == Action::RunInstallation);
            let private = row.path.contains('{') && !row.shared && !told;
            if !person.may(action) {
                assert_eq!(got.status, 403, "{about}");
            } else if private {
                assert_eq!(got.status, 404, "{about}");
            } else {
                assert!(got.status != 403 && got.status != 401 && got.status < 500, "{about}");
            }
            let echoed = |secret: &&String| path.contains(*secret) || body.contains(*secret);
            let leaked = world.secrets.iter().filter(|s| !echoed(s)).find(|s| got.text.contains(*s));
            assert!(told || leaked.is_none(), "{about}: tells {leaked:?}");
            if row.mutates() && got.status < 300 {
                world.restore().await;
            }
        }
    }
    assert_eq!(world.server.tables_of_workspace(1).await, before, "somebody from elsewhere changed something");
}

/// In their own workspace everybody may do what their role may, and nothing else.
#[tokio::test]
async fn every_role_at_home() {
    let world = World::new().await;
    // What is accepted stays on its way, so that it is there for the next one to ask for.
    world.server.held.store(true, std::sync::atomic::Ordering::Relaxed);
    for row in rows() {
        let Some(action) = row.action else { continue };
        let mut first = true;
        for person in &world.members {
            let got = world.send(row, Some(&person.key)).await;
            let about = format!("{} {} as {}: {} {}", row.method, row.path, person.name(), got.status, got.text);
            if !person.may(action) {
                assert_eq!(got.status, 403, "{about}");
                continue;
            }
            assert!(got.status != 401 && got.status != 403 && got.status < 500, "{about}");
            if !row.mutates() {
                assert_eq!(got.status, 200, "{about}");
            }
            // Otherwise the 404 that people from elsewhere get would say nothing.
            assert!(!first || got.status != 404, "{about}: it should be there");
            first = false;
            if row.mutates() && got.status < 300 {
                world.restore().await;
            }
        }
    }
}
