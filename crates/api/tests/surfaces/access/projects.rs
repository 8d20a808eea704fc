//! Every route with a key that is limited to a project, of whoever may do everything else.
//!
//! The one rule is that of the walk: nothing is picked. What is about the whole workspace is refused by its row in
//! `table.rs`, and what is in another project does not exist, whatever it is called.

use holdfast_model::access::Reach;
use holdfast_model::hashid::{self, Prefix};
use serde_json::json;

use super::table::Row;
use super::walk::{MARK, World, rows, text};
use crate::support::{V2026, provision};

/// Parameters that name what all of a workspace has in common.
const OF_ALL: [&str; 3] = ["{team_slug}", "{workspace_slug}", "{workspace}"];

/// Whether its path names something that is in a project, or belongs to a key.
fn is_private(row: &Row) -> bool {
    let parameters = row.path.split('/').filter(|part| part.starts_with('{'));
    !row.shared && parameters.into_iter().any(|part| !OF_ALL.contains(&part))
}

/// What it is also called.
async fn forms(world: &World, row: &Row) -> Vec<String> {
    let path = world.path(row);
    let mut paths = vec![path.clone()];
    let other = |from: &str, to: String| path.contains(from).then(|| path.replace(from, &to));
    let (cvm, app) = (world.id("{cvm_id}"), world.id("{app_id}"));
    if row.path.contains("{cvm_id}") || row.path.contains("{vm_uuid}") {
        let id = world.server.number(&format!("SELECT id FROM vm WHERE uuid = '{cvm}'")).await;
        let instance = world.server.text(&format!("SELECT instance_id FROM vm WHERE uuid = '{cvm}'")).await;
        let names = [
            cvm.replace('-', ""),
            cvm.to_uppercase(),
            id.to_string(),
            hashid::encode(Prefix::Cvm, id),
            app.to_owned(),
            format!("app_{app}"),
            instance.clone(),
            format!("instance_{instance}"),
            format!("{MARK}-one"),
        ];
        paths.extend(names.into_iter().filter_map(|name| other(cvm, name)));
    }
    if row.path.contains("{app_id}") {
        let id = world.server.number(&format!("SELECT id FROM app WHERE app_id = '{app}'")).await;
        let names = [format!("app_{app}"), format!("0x{app}"), app.to_uppercase(), hashid::encode(Prefix::App, id)];
        paths.extend(names.into_iter().filter_map(|name| other(app, name)));
    }
    if row.path.contains("operation_id}") || row.path.contains("/operations/{id}") {
        let id = world.id("{operation_id}");
        paths.extend(other(id, id.to_uppercase()));
    }
    if row.path.contains("{project}") {
        let id = world.id("{project}");
        paths.extend([other(id, format!("{MARK}-project")), other(id, id.replace('-', ""))].into_iter().flatten());
    }
    paths
}

#[tokio::test]
async fn another_project_does_not_exist() {
    let mut world = World::new().await;
    // Of whoever asks, and for more than they ask with.
    let wide = world.server.at(V2026).post("/tokens", &json!({ "name": "wide" })).await.expect(200);
    world.ids.insert(0, ("{token_id}", wide["id"].to_string()));
    // Everything so far is in other projects, and the workspace is everybody's.
    let mut secrets = std::mem::take(&mut world.secrets);
    secrets.remove(MARK);
    // With whose key something in one's own project was done is told.
    let keys = world.server.text("SELECT GROUP_CONCAT(uuid) FROM api_key").await;
    secrets.retain(|secret| !keys.contains(secret.as_str()));
    secrets.extend(["one", "two", "hook", "key", "project", "guest"].map(|name| format!("{MARK}-{name}")));
    let server = &world.server;
    server.holdfast("POST", "/projects", &json!({ "name": "shown" })).await.expect(201);
    let key = json!({ "name": "narrow", "project_ids": ["shown"] });
    let key = text(&server.at(V2026).post("/tokens", &key).await.expect(200)["token"]);
    let narrow = server.with_key(&key);
    let made = narrow.post("/cvms/provision", &provision("shown-app")).await.expect(200);
    let commit = json!({ "app_id": made["app_id"], "compose_hash": made["compose_hash"] });
    let own = narrow.post("/cvms", &commit).await.expect(200);
    server.until_status("shown-app", "running").await;

    let untouched = async || {
        let tables = world.server.tables().await;
        // Requests leave these behind, whatever became of them; the user's keys are used.
        let kept = |line: &&str| !["audit_log:", "api_key:"].iter().any(|table| line.starts_with(table));
        let of_others = |line: &&str| secrets.iter().any(|secret| line.contains(secret.as_str()));
        tables.lines().filter(kept).filter(of_others).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = untouched().await;
    for row in rows() {
        if row.action.is_none() {
            continue;
        }
        let body = world.body(row).to_string();
        for path in forms(&world, row).await {
            let got = world.send_to(row, &path, Some(&key)).await;
            let about = format!("{} {path}: {} {}", row.method, got.status, got.text);
            if row.reach() == Reach::Workspace {
                assert!(got.status == 403 && got.text.contains("HF-0435"), "{about}");
            } else if is_private(row) {
                assert_eq!(got.status, 404, "{about}");
            } else {
                assert!(![401, 403, 404].contains(&got.status) && got.status < 500, "{about}");
            }
            let echoed = |secret: &&String| path.contains(*secret) || body.contains(*secret);
            let leaked = secrets.iter().filter(|secret| !echoed(secret)).find(|secret| got.text.contains(*secret));
            assert!(leaked.is_none(), "{about}: tells {leaked:?}");
            if row.mutates() && got.status < 300 {
                world.restore().await;
            }
        }
    }
    assert_eq!(untouched().await, before, "something of another project was changed");

    // Otherwise all those 404 would say nothing: the same routes find what is in the key's own project.
    let (uuid, app) = (text(&own["vm_uuid"]), text(&own["app_id"]));
    let revisions = narrow.get(&format!("/apps/{app}/revisions")).await.expect(200);
    let operations = narrow.any("GET", "/holdfast/v1/operations", ("", "")).await.expect(200);
    let audit = narrow.any("GET", "/holdfast/v1/audit-logs", ("", "")).await.expect(200);
    let operation = text(&operations["items"][0]["id"]);
    assert!(operations["total"].as_i64() > Some(0) && audit["total"].as_i64() > Some(0), "{operations} {audit}");
    let found = [
        ("/holdfast/v1/operations/{id}", operation.clone()),
        ("/holdfast/v1/audit-logs/{id}", text(&audit["items"][0]["id"])),
        ("{operation_id}", operation),
        ("{audit_log_id}", text(&audit["items"][0]["id"])),
        ("{cvm_id}", uuid.clone()),
        ("{vm_uuid}", uuid),
        ("{app_id}", app),
        ("{revision_id}", text(&revisions["revisions"][0]["revision_id"])),
        ("{project}", "shown".to_owned()),
    ];
    world.ids.splice(0..0, found);
    let reads = rows().into_iter().filter(|row| row.method == "GET" && row.action.is_some());
    for row in reads.filter(|row| row.reach() == Reach::Projects) {
        let got = world.send_to(row, &world.path(row), Some(&key)).await;
        assert_eq!(got.status, 200, "{}: {}", world.path(row), got.text);
    }
}
