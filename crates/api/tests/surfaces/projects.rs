//! Projects: their life, what goes where, and what a key that is limited to some of them sees of the others: nothing.
//! That no route lets it see more, `access/projects.rs` walks through.

use axum::body::Body;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::{Answer, Server, V2026, provision, until};

const HEADER: &str = "x-holdfast-project";

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

async fn project(server: &Server, name: &str) -> String {
    text(&server.holdfast("POST", "/projects", &json!({ "name": name })).await.expect(201)["id"])
}

/// A key that is limited to these projects.
async fn key(server: &Server, projects: &[&str]) -> String {
    let token = json!({ "name": projects.join(" "), "project_ids": projects });
    text(&server.at(V2026).post("/tokens", &token).await.expect(200)["token"])
}

/// A request of the Phala surface that may name a project.
async fn send(server: &Server, key: &str, path: &str, named: Option<&str>, body: &Value) -> Answer {
    let mut request = server.with_key(key).request("POST", path).header("x-phala-version", V2026);
    if let Some(named) = named {
        request = request.header(HEADER, named);
    }
    server.send(request.body(Body::from(body.to_string())).expect("a request")).await
}

/// Provisions and commits an app, both with the same header.
async fn deploy(server: &Server, key: &str, name: &str, named: Option<&str>) -> Value {
    let made = send(server, key, "/cvms/provision", named, &provision(name)).await.expect(200);
    let commit = json!({ "app_id": made["app_id"], "compose_hash": made["compose_hash"] });
    let vm = send(server, key, "/cvms", named, &commit).await.expect(200);
    server.until_status(name, "running").await;
    vm
}

/// UUID of the project that a CVM is in.
async fn place(server: &Server, name: &str) -> String {
    let of = |table: &str| format!("SELECT p.uuid FROM vm v JOIN project p ON p.id = {table}");
    let vm = server.text(&format!("{} WHERE v.name = '{name}'", of("v.project_id"))).await;
    let app = format!("(SELECT a.project_id FROM app a WHERE a.id = v.app_row) WHERE v.name = '{name}'");
    assert_eq!(server.text(&of(&app)).await, vm, "an app is where its CVMs are");
    vm
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().expect("items").iter().map(|item| item["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn the_life_of_a_project() {
    let server = Server::start().await;
    let made = server.holdfast("POST", "/projects", &json!({ "name": "team.a" })).await.expect(201);
    let id = text(&made["id"]);
    assert_eq!((&made["is_default"], &made["cvms"]), (&json!(false), &json!(0)));
    let list = server.holdfast("GET", "/projects", &Value::Null).await.expect(200);
    assert_eq!((names(&list), &list["total"]), (vec!["default", "team.a"], &json!(2)));
    let first = server.holdfast("GET", "/projects?limit=1", &Value::Null).await.expect(200);
    assert_eq!((names(&first), &first["items"][0]["is_default"]), (vec!["default"], &json!(true)));
    let next = format!("/projects?limit=1&cursor={}", text(&first["next_cursor"]));
    assert_eq!(names(&server.holdfast("GET", &next, &Value::Null).await.expect(200)), ["team.a"]);
    for name in [id.as_str(), "team.a", &id.replace('-', "")] {
        assert_eq!(server.holdfast("GET", &format!("/projects/{name}"), &Value::Null).await.expect(200), made);
    }

    let code = |answer: Answer, status: u16| text(&answer.expect(status)["error"]["code"]);
    let wrong = [json!("a b"), json!(""), json!("x".repeat(64)), json!(id), json!(1)];
    for name in wrong {
        assert_eq!(code(server.holdfast("POST", "/projects", &json!({ "name": name })).await, 422), "HF-0001");
    }
    let taken = server.holdfast("POST", "/projects", &json!({ "name": "team.a" })).await;
    assert_eq!(code(taken, 409), "HF-0431");
    let path = format!("/projects/{id}");
    assert_eq!(code(server.holdfast("PATCH", &path, &json!({ "name": "default" })).await, 409), "HF-0431");
    let renamed = server.holdfast("PATCH", &path, &json!({ "name": "team-b" })).await.expect(200);
    assert_eq!((&renamed["id"], &renamed["name"]), (&json!(id), &json!("team-b")));
    // The default project is one like the others, but for this.
    server.holdfast("PATCH", "/projects/default", &json!({ "name": "main" })).await.expect(200);
    assert_eq!(code(server.holdfast("DELETE", "/projects/main", &Value::Null).await, 409), "HF-0432");

    deploy(&server, &server.key, "web-app", Some("team-b")).await;
    assert_eq!(server.holdfast("GET", &path, &Value::Null).await.expect(200)["cvms"], 1);
    assert_eq!(code(server.holdfast("DELETE", &path, &Value::Null).await, 409), "HF-0433");
    assert_eq!(server.at(V2026).delete("/cvms/web-app").await.status, 204);
    until("it is gone", async || server.holdfast("GET", &path, &Value::Null).await.expect(200)["cvms"] == 0).await;
    let later = send(&server, &server.key, "/cvms/provision", Some("team-b"), &provision("late-app")).await.expect(200);
    assert_eq!(server.holdfast("DELETE", &path, &Value::Null).await.status, 204);
    for (method, path) in [("GET", path.as_str()), ("DELETE", &path), ("GET", "/projects/team-b")] {
        assert_eq!(code(server.holdfast(method, path, &Value::Null).await, 404), "HF-0430");
    }
    let late = json!({ "app_id": later["app_id"], "compose_hash": later["compose_hash"] });
    assert_eq!(send(&server, &server.key, "/cvms", None, &late).await.status, 422, "its preparation is gone with it");
    // What became of its CVM stays, and its name is free.
    let operations = server.holdfast("GET", &format!("/operations?project={id}"), &Value::Null).await.expect(200);
    assert_eq!(operations["total"], 2, "a create and a delete");
    assert_ne!(project(&server, "team-b").await, id);
    let audit = "/audit-logs?target_type=project&sort=created_at:asc";
    let audit = server.holdfast("GET", audit, &Value::Null).await.expect(200);
    let entries = audit["items"].as_array().expect("entries").iter();
    let actions: Vec<_> = entries.filter(|e| e["target"]["id"] == id.as_str()).map(|e| text(&e["action"])).collect();
    assert_eq!(actions, ["project.create", "project.rename", "project.delete"]);
}

#[tokio::test]
async fn a_project_is_made_once_however_often_it_is_asked_for() {
    let server = Server::start().await;
    let ask = async |method: &str, path: &str, body: Value| {
        let request = server.at(V2026).request(method, "/").uri(format!("/holdfast/v1/projects{path}"));
        let request = request.header("idempotency-key", format!("{method}-it"));
        server.send(request.body(Body::from(body.to_string())).expect("a request")).await
    };
    let made = ask("POST", "", json!({ "name": "once" })).await.expect(201);
    assert_eq!(ask("POST", "", json!({ "name": "once" })).await.expect(201), made);
    // The answer got lost on the way, but not what it said.
    server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
    assert_eq!(ask("POST", "", json!({ "name": "once" })).await.expect(201), made);
    assert_eq!(ask("POST", "", json!({ "name": "twice" })).await.status, 422);
    assert_eq!(ask("DELETE", "/once", Value::Null).await.status, 204);
    server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
    assert_eq!(ask("DELETE", "/once", Value::Null).await.status, 204);
    assert_eq!(server.number("SELECT COUNT(*) FROM project WHERE deleted_at IS NULL").await, 1);
}

#[tokio::test]
async fn where_a_cvm_goes() {
    let server = Server::start().await;
    let (one, two) = (project(&server, "one").await, project(&server, "two").await);
    let default = server.text("SELECT uuid FROM project WHERE is_default").await;
    let (only, both, own) =
        (key(&server, &["one"]).await, key(&server, &["one", "two"]).await, key(&server, &["default", "two"]).await);
    let root = server.key.as_str();
    for (key, name, named, due) in [
        (root, "unsaid", None, &default),
        (root, "by-name", Some("one"), &one),
        (root, "by-id", Some(two.as_str()), &two),
        (&only, "only-one", None, &one),
        (&only, "said-too", Some(one.as_str()), &one),
        (&both, "of-two", Some("two"), &two),
        (&own, "of-default", None, &default),
    ] {
        deploy(&server, key, name, named).await;
        assert_eq!(place(&server, name).await, *due, "{name}");
    }
    let refused = [
        (root, Some("nowhere"), 404, "HF-0430"),
        (root, Some("0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e"), 404, "HF-0430"),
        (&only, Some("two"), 403, "HF-0434"),
        (&only, Some("nowhere"), 404, "HF-0430"),
        // Which of the two nobody said, and neither is the default one.
        (&both, None, 403, "HF-0434"),
    ];
    for (key, named, status, code) in refused {
        for (path, body) in [
            ("/cvms/provision", provision("refused")),
            ("/cvms", json!({ "app_id": "00".repeat(20), "compose_hash": "00".repeat(32) })),
        ] {
            if path == "/cvms" && named.is_none() {
                continue;
            }
            let answer = send(&server, key, path, named, &body).await.expect(status);
            assert_eq!(answer["error_code"], code, "{path} {named:?}: {answer}");
            assert!(!answer["suggestions"][0].as_str().expect("a hint").is_empty());
        }
    }
    assert_eq!(send(&server, root, "/cvms/provision", Some(" "), &provision("refused")).await.status, 422);

    // The commit has the last word of a new app, and none of an old one.
    let made = send(&server, root, "/cvms/provision", Some("one"), &provision("last-word")).await.expect(200);
    let commit = json!({ "app_id": made["app_id"], "compose_hash": made["compose_hash"] });
    send(&server, root, "/cvms", Some("two"), &commit).await.expect(200);
    assert_eq!(place(&server, "last-word").await, two);
    assert_eq!(send(&server, root, "/cvms", Some("one"), &commit).await.expect(409)["error_code"], "HF-0436");
    let again = send(&server, root, "/cvms", None, &commit).await.expect(200);
    assert_eq!(again["app_id"], made["app_id"]);
    // From where it was prepared for it is not to be seen.
    assert_eq!(send(&server, &only, "/cvms", None, &commit).await.expect(422)["message"], "Provision data not found.");
}

/// Whatever comes of an app is where the app is, whoever asks for it.
#[tokio::test]
async fn what_comes_of_an_app_stays_in_its_project() {
    let server = Server::start().await;
    let one = project(&server, "one").await;
    project(&server, "two").await;
    let vm = deploy(&server, &server.key, "web-app", Some("one")).await;
    let (app, first) = (text(&vm["app_id"]), text(&vm["vm_uuid"]));
    for (path, named) in [
        (format!("/cvms/{first}/replicas"), None),
        (format!("/apps/{app}/instances"), Some("one")),
        (format!("/apps/{app}/cvms/{first}/replicas"), None),
    ] {
        let made = send(&server, &server.key, &path, named, &json!({})).await.expect(200);
        let id = text(&made["vm_uuid"]);
        let of = "SELECT p.uuid FROM vm v JOIN project p ON p.id = v.project_id";
        assert_eq!(server.text(&format!("{of} WHERE v.uuid = '{id}'")).await, one, "{path}");
        server.until_status(&id, "running").await;
        let refused = send(&server, &server.key, &path, Some("two"), &json!({})).await.expect(409);
        assert_eq!(refused["error_code"], "HF-0436", "{path}");
    }
    let of = "SELECT COUNT(DISTINCT project_id) FROM";
    assert_eq!(server.number(&format!("{of} vm")).await, 1);
    assert_eq!(server.number(&format!("{of} operation")).await, 1);
    // Another provision of the app goes where the app is.
    let nonce = server.number(&format!("SELECT nonce FROM app WHERE app_id = '{app}'")).await;
    let mut again = provision("web-again");
    (again["app_id"], again["nonce"]) = (json!(app), json!(nonce));
    send(&server, &server.key, "/cvms/provision", None, &again).await.expect(200);
    assert_eq!(server.text("SELECT p.uuid FROM provision v JOIN project p ON p.id = v.project_id").await, one);
    let elsewhere = send(&server, &server.key, "/cvms/provision", Some("two"), &again).await.expect(409);
    assert_eq!(elsewhere["error_code"], "HF-0436");
}

/// Two projects of one workspace with a CVM each, and the key of each.
struct Two {
    server: Server,
    mine: String,
    theirs: String,
    own: Value,
    hidden: Value,
}

async fn two() -> Two {
    let server = Server::start().await;
    project(&server, "mine").await;
    project(&server, "theirs").await;
    let (mine, theirs) = (key(&server, &["mine"]).await, key(&server, &["theirs"]).await);
    let own = deploy(&server, &mine, "own-app", None).await;
    let hidden = deploy(&server, &theirs, "hidden-app", None).await;
    Two { server, mine, theirs, own, hidden }
}

#[tokio::test]
async fn lists_and_batches_have_ones_own_project_only() {
    let Two { server, mine, own, hidden, .. } = two().await;
    let key = server.with_key(&mine);
    let (own_id, hidden_id) = (text(&own["vm_uuid"]), text(&hidden["vm_uuid"]));
    for path in ["/cvms", "/cvms?teepod_id=1", "/cvms/paginated", "/apps", "/apps?search=hidden"] {
        let all = key.get(path).await.expect(200);
        let found = all.to_string().contains(&own_id);
        assert!(found != path.contains("search"), "{path}: {all}");
        assert!(!all.to_string().contains(&hidden_id), "{path}: {all}");
        let total = all["total"].as_i64().unwrap_or_else(|| i64::from(found));
        assert_eq!(total, i64::from(found), "{path}: {all}");
    }
    for path in ["/holdfast/v1/operations", "/holdfast/v1/operations?name_prefix=hidden", "/v1/operations"] {
        let list = key.any("GET", path, ("", "")).await.expect(200);
        let total = list["total"].as_i64().or(list["pagination"]["total_count"].as_i64());
        assert_eq!(total, Some(i64::from(!path.contains("hidden"))), "{path}: {list}");
    }
    let id = server.text("SELECT uuid FROM project WHERE name = 'theirs'").await;
    for path in [format!("/v1/operations?project_id={id}"), format!("/holdfast/v1/operations?project={id}")] {
        assert_eq!(key.any("GET", &path, ("", "")).await.expect(200)["items"], json!([]), "{path}");
    }

    // Of those that are called by their ids too.
    let ids = json!([own_id, hidden_id]);
    let status = key.post("/status/batch", &json!({ "vm_uuids": ids })).await.expect(200);
    assert_eq!(status.as_object().expect("statuses").keys().collect::<Vec<_>>(), [&own_id]);
    let refresh = key.patch("/cvms/instance-ids", &json!({})).await.expect(200);
    assert_eq!((&refresh["total"], &refresh["scanned"]), (&json!(1), &json!(1)));
    let stopped = key.post("/cvms/batch-stop", &json!({ "cvm_ids": ids })).await;
    assert!(stopped.status.is_success(), "{}", stopped.text());
    server.until_status("own-app", "stopped").await;
    server.until_status("hidden-app", "running").await;
    let options = key.get("/apps/filter-options").await.expect(200);
    assert_eq!(options["statuses"], json!(["stopped"]));
    assert_eq!(
        server.at(V2026).get("/apps/filter-options").await.expect(200)["statuses"],
        json!(["running", "stopped"])
    );

    // The same name is taken all the same: names are one per workspace.
    let taken = key.post("/cvms/provision", &provision("hidden-app")).await.expect(409);
    assert_eq!(taken["error_code"], "ERR-01-004");
    let listed = key.any("GET", "/holdfast/v1/projects", ("", "")).await.expect(200);
    assert_eq!((names(&listed), &listed["total"]), (vec!["mine"], &json!(1)));
}

/// From the very first event on, also while new ones come.
#[tokio::test]
async fn a_stream_has_ones_own_project_only() {
    let Two { server, mine, theirs, own, hidden } = two().await;
    let open = server.with_key(&mine).request("GET", "/").uri("/holdfast/v1/operations/stream");
    let open = open.header("last-event-id", "0").body(Body::empty()).expect("a request");
    let mut stream = server.open(open).await.into_body().into_data_stream();
    for (key, name) in [(&theirs, "hidden-app"), (&mine, "own-app")] {
        server.with_key(key).post(&format!("/cvms/{name}/stop"), &Value::Null).await.expect(200);
        server.until_status(name, "stopped").await;
    }
    let (mut seen, last) = (String::new(), "\"event_type\":\"instance.power_off.end\"");
    while !seen.contains(last) {
        let piece = tokio::time::timeout(std::time::Duration::from_secs(20), stream.next()).await.expect("in time");
        seen.push_str(&String::from_utf8_lossy(&piece.expect("more").expect("a piece")));
    }
    assert!(seen.contains(&text(&own["vm_uuid"])) && seen.contains("instance.create.start"), "{seen}");
    assert!(!seen.contains(&text(&hidden["vm_uuid"])) && !seen.contains("hidden-app"), "{seen}");
}

#[tokio::test]
async fn the_audit_log_has_what_is_about_ones_own_project() {
    let Two { server, mine, own, hidden, .. } = two().await;
    // A refusal is of no project: what it was about was not looked up.
    assert_eq!(server.with_key(&mine).post("/cvms/hidden-app/stop", &Value::Null).await.status, 404);
    let path = format!("/cvms/{}/scheduled-delete", text(&own["vm_uuid"]));
    let at = json!({ "scheduled_delete_at": "2100-01-01T00:00:00Z" });
    assert!(server.at(V2026).patch(&path, &at).await.status.is_success());
    for (path, total) in [("/holdfast/v1/audit-logs", "total"), ("/v1/audit_logs", "total_count")] {
        let log = server.with_key(&mine).any("GET", path, ("", "")).await.expect(200);
        let entries = log["items"].as_array().expect("entries");
        let mut actions: Vec<_> = entries.iter().map(|entry| entry["action"].as_str().expect("an action")).collect();
        actions.sort_unstable();
        assert_eq!(actions, ["project.create", "vm.create", "vm.scheduled_delete.set"], "{path}");
        assert_eq!(log[total].as_i64().or(log["pagination"][total].as_i64()), Some(3), "{path}");
        assert!(!log.to_string().contains(&text(&hidden["vm_uuid"])), "{path}: {log}");
    }
    for query in ["status_code_min=400", "sort=status_code:desc", "action=vm.create"] {
        let all = server.with_key(&mine).any("GET", &format!("/v1/audit_logs?{query}"), ("", "")).await.expect(200);
        let due = [("status", 0), ("sort", 3), ("action", 1)];
        let (_, due) = due.into_iter().find(|(word, _)| query.starts_with(word)).expect("known");
        assert_eq!(all["items"].as_array().map(Vec::len), Some(due), "{query}: {all}");
    }
}

/// A limited key makes keys that are as limited, and sees no others.
#[tokio::test]
async fn its_keys_are_no_wider() {
    let Two { server, mine, .. } = two().await;
    let key = server.with_key(&mine);
    let made = key.post("/tokens", &json!({ "name": "child" })).await.expect(200);
    assert_eq!(made["project_ids"], json!([server.text("SELECT uuid FROM project WHERE name = 'mine'").await]));
    let child = text(&made["token"]);
    assert_eq!(server.with_key(&child).get("/cvms/hidden-app").await.status, 404);
    assert_eq!(server.with_key(&child).get("/cvms/own-app").await.status, 200);
    let wider = key.post("/tokens", &json!({ "name": "wider", "project_ids": ["mine", "theirs"] })).await.expect(403);
    assert_eq!(wider["error_code"], "HF-0434");
    assert_eq!(key.post("/tokens", &json!({ "name": "lost", "project_ids": ["nowhere"] })).await.status, 422);

    let wide = server.at(V2026).post("/tokens", &json!({ "name": "wide" })).await.expect(200);
    let listed = key.get("/tokens?all_workspaces=true").await.expect(200);
    let mut names: Vec<_> = listed.as_array().expect("tokens").iter().map(|token| text(&token["name"])).collect();
    names.sort();
    assert_eq!(names, ["child", "mine"]);
    let path = format!("/tokens/{}", wide["id"]);
    assert_eq!(key.delete(&path).await.status, 404);
    assert_eq!(key.post(&format!("{path}/refresh"), &json!({})).await.status, 404);
    assert_eq!(key.delete(&format!("/tokens/{}", made["id"])).await.status, 204);
    // Its holder runs the installation; the key does not.
    let me = key.get("/auth/me").await.expect(200);
    assert_eq!(me["user"]["role"], "user");
    let refused = key.any("GET", "/holdfast/v1/users", ("", "")).await.expect(403);
    assert_eq!(refused["error"]["code"], "HF-0435");
}

/// An idempotency key that another project's caller used is not known here: neither its answer nor that it was used.
#[tokio::test]
async fn repetitions_are_answered_to_whoever_saw_the_first_answer() {
    let Two { server, mine, theirs, .. } = two().await;
    let stop = async |key: &str, name: &str| {
        let request = server.with_key(key).request("POST", &format!("/cvms/{name}/stop"));
        let request = request.header("idempotency-key", "the-same");
        server.send(request.body(Body::empty()).expect("a request")).await
    };
    let first = stop(&theirs, "hidden-app").await.expect(200);
    assert_eq!(stop(&theirs, "hidden-app").await.expect(200), first);
    assert_eq!(stop(&mine, "hidden-app").await.status, 404);
    assert_eq!(stop(&mine, "own-app").await.status, 200);
    let other = stop(&mine, "other-app").await.expect(422);
    assert_eq!(other["message"], "The idempotency key \"the-same\" was used for another request.");
    // Which project is named belongs to the request.
    let ask = async |named: &str| {
        let request = server.at(V2026).request("POST", "/cvms/provision").header("idempotency-key", "named");
        let request = request.header(HEADER, named).body(Body::from(provision("new-app").to_string()));
        server.send(request.expect("a request")).await
    };
    assert_eq!(ask("mine").await.status, 200);
    assert_eq!(ask("mine").await.headers["idempotency-replayed"], "true");
    assert_eq!(ask("theirs").await.status, 422);
}

/// What a hash names in another project's files it does not name here.
#[tokio::test]
async fn a_compose_file_is_its_projects() {
    let Two { server, mine, theirs, .. } = two().await;
    let file = json!({ "docker_compose_file": "services:\n  web:\n    image: theirs\n" });
    let path = "/cvms/hidden-app/compose_file/provision";
    let hash = server.with_key(&theirs).post(path, &file).await.expect(200)["compose_hash"].clone();
    let change = json!({ "compose_hash": hash });
    let refused = server.with_key(&mine).patch("/cvms/own-app/compose_file", &change).await.expect(422);
    assert_eq!(refused["message"], "Provision data not found: no app-compose.json has this hash.");
    assert!(server.with_key(&theirs).patch("/cvms/hidden-app/compose_file", &change).await.status.is_success());
    // Whoever sees both may bring it from the one to the other.
    assert!(server.at(V2026).patch("/cvms/own-app/compose_file", &change).await.status.is_success());
}

/// Whoever runs the installation sees the projects of every workspace, and members those of their own.
#[tokio::test]
async fn projects_of_other_workspaces() {
    let server = Server::start().await;
    let id = project(&server, "here").await;
    let key = server.stranger("user").await;
    let stranger = server.with_key(&key);
    assert_eq!(names(&stranger.any("GET", "/holdfast/v1/projects", ("", "")).await.expect(200)), ["default"]);
    for path in [format!("/holdfast/v1/projects/{id}"), "/holdfast/v1/projects/here".to_owned()] {
        assert_eq!(stranger.any("GET", &path, ("", "")).await.status, 404);
    }
    let answer = stranger.any("GET", "/holdfast/v1/projects?workspace=default", ("", "")).await;
    assert_eq!(answer.status, 403);
    let theirs = server.holdfast("GET", "/projects?workspace=elsewhere", &Value::Null).await.expect(200);
    assert_eq!(names(&theirs), ["default"]);
    assert_eq!(send(&server, &key, "/cvms/provision", Some("here"), &provision("any-app")).await.status, 404);
}
