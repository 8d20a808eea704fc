//! Workspaces, members and invitations as their people use them.

use axum::body::Body;
use holdfast_model::hashid::{self, Prefix};
use serde_json::{Value, json};

use crate::support::{Answer, NEWEST, Server, V2026};

/// A member of the installation's workspace in this role, and their key.
async fn member(server: &Server, name: &str, role: &str) -> String {
    server.member(1, name, role).await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn user(id: i64) -> String {
    hashid::encode(Prefix::User, id)
}

async fn accept(server: &Server, key: &str, code: &str) -> Answer {
    let request = server.with_key(key).request("POST", "/").uri("/holdfast/v1/invitations/accept");
    server.send(request.body(Body::from(json!({ "code": code }).to_string())).expect("a request")).await
}

async fn invite(server: &Server, key: &str, email: &str, role: &str) -> Answer {
    server.with_key(key).post("/workspaces/default/invitations", &json!({ "email": email, "role": role })).await
}

#[tokio::test]
async fn a_caller_sees_the_workspaces_they_belong_to() {
    let server = Server::start().await;
    let key = server.stranger("user").await;
    for i in 0..4 {
        let owner = if i < 3 { "stranger" } else { "admin" };
        let body = json!({ "slug": format!("team-{i}"), "name": format!("Team {i}"), "owner": owner });
        server.holdfast("POST", "/workspaces", &body).await.expect(201);
    }
    let all = server.with_key(&key).get("/workspaces").await.expect(200);
    let slugs = |page: &Value| -> Vec<String> {
        page["data"].as_array().expect("data").iter().map(|workspace| text(&workspace["slug"])).collect()
    };
    assert_eq!(slugs(&all), ["elsewhere", "team-0", "team-1", "team-2"]);
    assert_eq!(all["pagination"], json!({ "has_more": false, "next_cursor": null, "total": 4 }));
    assert_eq!((&all["data"][0]["is_default"], &all["data"][1]["is_default"]), (&json!(true), &json!(false)));
    let first = server.with_key(&key).get("/workspaces?limit=3").await.expect(200);
    assert_eq!((slugs(&first).len(), &first["pagination"]["has_more"]), (3, &json!(true)));
    let cursor = text(&first["pagination"]["next_cursor"]);
    let rest = server.with_key(&key).get(&format!("/workspaces?limit=3&cursor={cursor}")).await.expect(200);
    assert_eq!(slugs(&rest), ["team-2"]);
    // A cursor is its owner's.
    assert_eq!(server.at(V2026).get(&format!("/workspaces?cursor={cursor}")).await.status, 400);

    // By slug and by id; what they do not belong to does not exist.
    let id = text(&all["data"][2]["id"]);
    assert_eq!(server.with_key(&key).get(&format!("/workspaces/{id}")).await.expect(200)["slug"], "team-1");
    for foreign in ["team-3", "default", &hashid::encode(Prefix::Workspace, 1), "no-such", "1"] {
        assert_eq!(server.with_key(&key).get(&format!("/workspaces/{foreign}")).await.status, 404, "{foreign}");
        let members = format!("/workspaces/{foreign}/members");
        assert_eq!(server.with_key(&key).get(&members).await.status, 404, "{foreign}");
    }
    // They see who is in another workspace of theirs, and use a key of it to change that.
    assert_eq!(server.with_key(&key).get("/workspaces/team-1/members").await.expect(200)["total"], 1);
    let path = "/workspaces/team-1/invitations";
    let refused = server.with_key(&key).post(path, &json!({ "email": "a@b.c", "role": "member" })).await.expect(403);
    assert!(text(&refused["message"]).contains("\"elsewhere\""), "{refused}");
}

#[tokio::test]
async fn a_slug_is_checked_before_it_is_taken() {
    let server = Server::start().await;
    let check = async |slug: &str| {
        let answer = server.at(NEWEST).post("/workspaces/check-slug", &json!({ "slug": slug })).await;
        answer.expect(200)["error_code"].clone()
    };
    assert_eq!(check("team-9").await, Value::Null);
    assert_eq!(check("default").await, "slug_taken");
    assert_eq!(check("Team").await, "slug_invalid");
    assert_eq!(check("check-slug").await, "slug_invalid");
    for wrong in [json!({ "slug": "" }), json!({ "slug": "x".repeat(51) }), json!({}), json!({ "slug": 7 })] {
        assert_eq!(server.at(NEWEST).post("/workspaces/check-slug", &wrong).await.status, 422, "{wrong}");
    }
    let taken = server.holdfast("POST", "/workspaces", &json!({ "slug": "default", "owner": "admin" })).await;
    assert_eq!(taken.expect(409)["error"]["code"], "HF-0412");
}

#[tokio::test]
async fn members_and_their_roles() {
    let server = Server::start().await;
    let (admin, reader) = (member(&server, "ada", "admin").await, member(&server, "rea", "viewer").await);
    let page = server.with_key(&reader).get("/workspaces/default/members?page_size=2").await.expect(200);
    assert_eq!((&page["total"], &page["pages"], &page["items"][0]["is_creator"]), (&json!(3), &json!(2), &json!(true)));
    let page = server.with_key(&reader).get("/workspaces/default/members?page=2&page_size=2").await.expect(200);
    assert_eq!((&page["items"][0]["username"], &page["items"][0]["role"]), (&json!("rea"), &json!("reader")));

    let change = async |key: &str, id: &str, role: &str| {
        let path = format!("/workspaces/default/members/{id}");
        server.with_key(key).patch(&path, &json!({ "role": role })).await
    };
    let (owner, ada, rea) = (user(1), user(2), user(3));
    assert_eq!(change(&reader, &rea, "admin").await.status, 403);
    assert_eq!(change(&admin, &rea, "member").await.expect(200)["role"], "member");
    assert_eq!(server.with_key(&reader).get("/auth/me").await.expect(200)["workspace"]["role"], "member");
    assert_eq!(change(&admin, &rea, "chief").await.status, 422);
    assert_eq!(change(&admin, &user(99), "member").await.expect(404)["error_code"], "HF-0413");
    assert_eq!(change(&admin, "3", "member").await.status, 404);
    // What an owner is, only an owner gives and takes.
    for (id, role) in [(&owner, "member"), (&rea, "owner"), (&ada, "owner")] {
        assert_eq!(change(&admin, id, role).await.status, 403, "{role}");
    }
    assert_eq!(server.with_key(&admin).delete(&format!("/workspaces/default/members/{owner}")).await.status, 403);
    // The last one stays, whoever asks.
    assert_eq!(change(&server.key, &owner, "admin").await.expect(400)["error_code"], "HF-0414");
    assert_eq!(server.at(V2026).delete(&format!("/workspaces/default/members/{owner}")).await.status, 400);
    assert_eq!(server.at(V2026).post("/workspaces/default/leave", &json!({})).await.status, 400);
    let put = format!("/workspaces/default/members/{owner}");
    assert_eq!(server.holdfast("PUT", &put, &json!({ "role": "reader" })).await.status, 400);
    assert_eq!(change(&server.key, &ada, "owner").await.expect(200)["role"], "owner");
    assert_eq!(change(&server.key, &owner, "admin").await.expect(200)["role"], "admin");
}

#[tokio::test]
async fn whoever_goes_takes_no_key_along() {
    let server = Server::start().await;
    let (ada, bob) = (member(&server, "ada", "admin").await, member(&server, "bob", "member").await);
    let path = format!("/workspaces/default/members/{}", user(3));
    server.with_key(&ada).delete(&path).await.expect(200);
    assert_eq!(server.with_key(&bob).get("/auth/me").await.status, 401);
    assert_eq!(server.with_key(&ada).delete(&path).await.status, 404);
    // Coming back does not bring the old key back.
    let put = format!("/workspaces/default/members/{}", user(3));
    server.holdfast("PUT", &put, &json!({ "role": "owner" })).await.expect(200);
    assert_eq!(server.with_key(&bob).get("/auth/me").await.status, 401);
    // The codes that somebody gave out end with their right to.
    let code = text(&invite(&server, &ada, "guest@example.com", "admin").await.expect(200)["token"]);
    let guest = server.stranger("user").await;
    server.with_key(&ada).post("/workspaces/default/leave", &json!({})).await.expect(200);
    assert_eq!(server.with_key(&ada).get("/auth/me").await.status, 401);
    assert_eq!(accept(&server, &guest, &code).await.expect(409)["error"]["code"], "HF-0417");
    assert_eq!(server.audited("action", "member.leave").await, 1);
}

#[tokio::test]
async fn an_invitation_makes_one_member() {
    let server = Server::start().await;
    let guest = server.stranger("user").await;
    let made = invite(&server, &server.key, "Guest@Example.com", "admin").await.expect(200);
    let code = text(&made["token"]);
    assert!(code.starts_with("hfinv_") && code.len() == 70, "{made}");
    assert_eq!((&made["email"], &made["status"]), (&json!("guest@example.com"), &json!("pending")));
    let list = server.at(V2026).get("/workspaces/default/invitations").await.expect(200);
    assert_eq!((&list["total"], &list["items"][0]["id"]), (&json!(1), &made["id"]));
    assert!(
        !list.to_string().contains(&code) && code.starts_with(text(&list["items"][0]["token"]).trim_end_matches('.'))
    );
    assert!(!server.tables().await.contains(&code), "the code is in the database");

    assert_eq!(accept(&server, &guest, "hfinv_00").await.expect(404)["error"]["code"], "HF-0416");
    let joined = accept(&server, &guest, &code).await.expect(200);
    assert_eq!((&joined["slug"], &joined["role"]), (&json!("default"), &json!("admin")));
    assert_eq!(server.with_key(&guest).get("/workspaces/default").await.expect(200)["role"], "admin");
    assert_eq!(accept(&server, &guest, &code).await.expect(409)["error"]["code"], "HF-0417");
    let list = server.at(V2026).get("/workspaces/default/invitations").await.expect(200);
    assert_eq!(list["items"][0]["status"], "accepted");
    let path = format!("/workspaces/default/invitations/{}", made["id"]);
    assert_eq!(server.at(V2026).delete(&path).await.status, 409);
}

#[tokio::test]
async fn codes_end() {
    let server = Server::start().await;
    let guest = server.stranger("user").await;
    let first = invite(&server, &server.key, "guest@example.com", "member").await.expect(200);
    // A newer one to the same address replaces it.
    let second = invite(&server, &server.key, "guest@example.com", "member").await.expect(200);
    assert_eq!(accept(&server, &guest, &text(&first["token"])).await.status, 409);
    let path = format!("/workspaces/default/invitations/{}", second["id"]);
    server.at(V2026).delete(&path).await.expect(200);
    assert_eq!(accept(&server, &guest, &text(&second["token"])).await.status, 409);
    let third = invite(&server, &server.key, "guest@example.com", "member").await.expect(200);
    server.sql("UPDATE invitation SET expires_at = 1 WHERE id = 3").await;
    assert_eq!(accept(&server, &guest, &text(&third["token"])).await.status, 409);
    let list = server.at(V2026).get("/workspaces/default/invitations").await.expect(200);
    let statuses: Vec<_> = list["items"].as_array().expect("items").iter().map(|item| text(&item["status"])).collect();
    assert_eq!(statuses, ["expired", "revoked", "revoked"]);
    for (id, status) in [("4", 404), ("0", 422), ("x", 422)] {
        assert_eq!(server.at(V2026).delete(&format!("/workspaces/default/invitations/{id}")).await.status, status);
    }
    for wrong in [json!({ "email": "nobody", "role": "member" }), json!({ "email": "a@b.c", "role": "chief" })] {
        assert_eq!(server.at(V2026).post("/workspaces/default/invitations", &wrong).await.status, 422);
    }
    let ada = member(&server, "ada", "admin").await;
    assert_eq!(invite(&server, &ada, "boss@example.com", "owner").await.status, 403);
    assert_eq!(invite(&server, &server.key, "boss@example.com", "owner").await.status, 200);
}

#[tokio::test]
async fn a_shareable_code_works_for_many_until_it_is_revoked() {
    let server = Server::start().await;
    let made = server.at(V2026).post("/workspaces/default/invitations/shareable", &json!({})).await.expect(200);
    let code = text(&made["token"]);
    assert_eq!(made["role"], "member");
    assert!(text(&made["invitation_url"]).ends_with(&format!("/holdfast/v1/invitations/accept#{code}")));
    let one = server.stranger("user").await;
    accept(&server, &one, &code).await.expect(200);
    assert_eq!(accept(&server, &one, &code).await.expect(409)["error"]["code"], "HF-0415");
    let elsewhere = server.number("SELECT id FROM workspace WHERE slug = 'elsewhere'").await;
    let two = server.member(elsewhere, "two", "reader").await;
    accept(&server, &two, &code).await.expect(200);
    server.at(V2026).delete("/workspaces/default/invitations/1").await.expect(200);
    let three = server.member(elsewhere, "three", "reader").await;
    assert_eq!(accept(&server, &three, &code).await.status, 409);
}

#[tokio::test]
async fn repeated_requests_do_it_once() {
    let server = Server::start().await;
    let guest = server.stranger("user").await;
    let send = async |key: &str, method: &str, path: &str, body: Value| {
        let request = server.with_key(key).request(method, "/").uri(path).header("idempotency-key", "once");
        server.send(request.body(Body::from(body.to_string())).expect("a request")).await
    };
    let path = "/api/v1/workspaces/default/invitations";
    let body = json!({ "email": "guest@example.com", "role": "member" });
    let code = text(&send(&server.key, "POST", path, body.clone()).await.expect(200)["token"]);
    for lost in [false, true] {
        if lost {
            server.sql("UPDATE idempotency_key SET status_code = 0, response = ''").await;
        }
        let again = send(&server.key, "POST", path, body.clone()).await;
        assert!(!again.text().contains(&code));
        assert_eq!(again.expect(409)["error_code"], "HF-0134");
        let path = "/holdfast/v1/invitations/accept";
        let first = send(&guest, "POST", path, json!({ "code": code })).await.expect(200);
        assert_eq!(first["slug"], "default");
    }
    assert_eq!(server.audited("action", "invitation.accept").await, 1);
}

/// What the installation's administrators do with people and workspaces.
#[tokio::test]
async fn accounts_are_made_and_disabled() {
    let server = Server::start().await;
    let body =
        json!({ "username": "ada", "email": "Ada@Example.com", "workspace": "default", "workspace_role": "admin" });
    let made = server.holdfast("POST", "/users", &body).await.expect(201);
    assert_eq!(
        (&made["email"], &made["role"], &made["disabled"]),
        (&json!("ada@example.com"), &json!("user"), &json!(false))
    );
    assert_eq!(server.holdfast("POST", "/users", &body).await.expect(409)["error"]["code"], "HF-0411");
    let same_address = json!({ "username": "other", "email": "ada@example.com" });
    assert_eq!(server.holdfast("POST", "/users", &same_address).await.status, 409);
    for wrong in [json!({ "username": "a b", "email": "a@b.c" }), json!({ "username": "a", "email": "b" })] {
        assert_eq!(server.holdfast("POST", "/users", &wrong).await.status, 422);
    }
    let members = server.holdfast("GET", "/workspaces/default/members", &Value::Null).await.expect(200);
    assert_eq!((&members["total"], &members["items"][1]["role"]), (&json!(2), &json!("admin")));
    let page = server.holdfast("GET", "/users?limit=1", &Value::Null).await.expect(200);
    let next = format!("/users?limit=1&cursor={}", text(&page["next_cursor"]));
    assert_eq!(server.holdfast("GET", &next, &Value::Null).await.expect(200)["items"][0]["username"], "ada");

    let key = member(&server, "bob", "member").await;
    let change = async |user: &str, body: Value| server.holdfast("PATCH", &format!("/users/{user}"), &body).await;
    assert_eq!(change("bob", json!({ "disabled": true })).await.expect(200)["disabled"], true);
    assert_eq!(server.with_key(&key).get("/auth/me").await.status, 401);
    change("bob", json!({ "disabled": false })).await.expect(200);
    assert_eq!(server.with_key(&key).get("/auth/me").await.status, 200);
    assert_eq!(change("nobody", json!({})).await.expect(404)["error"]["code"], "HF-0410");
    // Nobody shuts themselves out, whether or not another administrator is left.
    for others in ["user", "admin"] {
        change("bob", json!({ "role": others })).await.expect(200);
        for body in [json!({ "disabled": true }), json!({ "role": "user" })] {
            assert_eq!(change("admin", body).await.expect(409)["error"]["code"], "HF-0418", "{others}");
        }
    }
    let nodes = server.with_key(&key).any("GET", "/holdfast/v1/nodes", ("", "")).await;
    assert_eq!(nodes.status, 200, "bob runs the installation now");
    assert_eq!(server.audited("action", "user.disable").await, 1);
}

#[tokio::test]
async fn a_disabled_workspace_has_no_callers() {
    let server = Server::start().await;
    let key = server.stranger("user").await;
    let workspace = "/workspaces/elsewhere";
    let changed =
        server.holdfast("PATCH", workspace, &json!({ "disabled": true, "tier": "LEVEL_1" })).await.expect(200);
    assert_eq!(
        (&changed["disabled"], &changed["tier"], &changed["name"]),
        (&json!(true), &json!("LEVEL_1"), &json!("elsewhere"))
    );
    assert_eq!(server.with_key(&key).get("/auth/me").await.status, 401);
    server.holdfast("PATCH", workspace, &json!({ "disabled": false })).await.expect(200);
    assert_eq!(server.with_key(&key).get("/auth/me").await.status, 200);
    let own = server.holdfast("PATCH", "/workspaces/default", &json!({ "disabled": true })).await;
    assert_eq!(own.expect(409)["error"]["code"], "HF-0418");
    let gone = server.holdfast("DELETE", "/workspaces/elsewhere/members/admin", &Value::Null).await;
    assert_eq!(gone.expect(404)["error"]["code"], "HF-0413");
}

/// Whoever runs the installation sees what others may not know of; everybody else is told what concerns them.
#[tokio::test]
async fn an_administrator_of_the_installation_sees_more() {
    let server = Server::start().await;
    let key = server.stranger("user").await;
    let theirs =
        server.with_key(&key).post("/cvms/provision", &crate::support::provision("their-app")).await.expect(200);
    let commit = json!({ "app_id": theirs["app_id"], "compose_hash": theirs["compose_hash"] });
    server.with_key(&key).post("/cvms", &commit).await.expect(200);
    crate::support::until("it runs", async || {
        server.with_key(&key).get("/cvms/their-app").await.expect(200)["status"] == "running"
    })
    .await;
    server.deploy_running("my-app").await;
    let names = |page: &Value| -> Vec<String> {
        page["items"].as_array().expect("items").iter().map(|cvm| text(&cvm["name"])).collect()
    };
    let list = async |key: &str, query: &str| {
        names(&server.with_key(key).get(&format!("/cvms/paginated{query}")).await.expect(200))
    };
    let member = member(&server, "ada", "owner").await;
    let stranger = user(2);
    assert_eq!(names(&server.at(V2026).get("/cvms/paginated").await.expect(200)), ["my-app"]);
    let of_node = server.at(V2026).get("/cvms/paginated?teepod_id=1").await.expect(200);
    assert_eq!(names(&of_node), ["my-app", "their-app"]);
    let of_user = server.at(V2026).get(&format!("/cvms/paginated?user_id={stranger}")).await.expect(200);
    assert_eq!(names(&of_user), ["their-app"]);
    assert_eq!(list(&member, "?teepod_id=1").await, ["my-app"]);
    assert!(list(&member, &format!("?user_id={stranger}")).await.is_empty());

    // Operations of any workspace, with the cause; nobody else sees either.
    server
        .sql(
            "UPDATE operation SET status = 'stuck', error_code = 'HF-0201', error_message = 'The node failed.',
        error_internal = '/srv/disk1 is gone' WHERE workspace_id = 2",
        )
        .await;
    let page = server.holdfast("GET", "/operations?workspace=elsewhere", &Value::Null).await.expect(200);
    let operation = page["items"][0].clone();
    assert_eq!((&page["total"], &operation["error"]["internal"]), (&json!(1), &json!("/srv/disk1 is gone")));
    let path = format!("/holdfast/v1/operations/{}", text(&operation["id"]));
    let ask = async |key: &str, method: &str, path: &str| server.with_key(key).any(method, path, ("", "")).await;
    let own = ask(&key, "GET", &path).await;
    assert!(!own.text().contains("/srv/disk1"), "{}", own.text());
    assert_eq!(own.expect(200)["error"]["message"], "The node failed.");
    let phala = server.with_key(&key).get("/cvms/their-app/operations").await;
    assert!(!phala.text().contains("/srv/disk1"), "{}", phala.text());
    for (key, path, status) in [
        (&member, path.as_str(), 404),
        (&member, "/holdfast/v1/operations?workspace=elsewhere", 403),
        (&member, "/holdfast/v1/operations?workspace=none", 403),
    ] {
        assert_eq!(ask(key, "GET", path).await.status, status, "{path}");
    }
    // What is stuck is given up for them, and their audit log says by whom.
    assert_eq!(ask(&server.key, "POST", &format!("{path}/cancel")).await.status, 404);
    assert_eq!(ask(&server.key, "POST", &format!("{path}/abandon")).await.expect(200)["status"], "failed");
    let log = ask(&key, "GET", "/holdfast/v1/audit-logs?action=operation.abandon").await.expect(200);
    assert_eq!((&log["total"], &log["items"][0]["actor"]["name"]), (&json!(1), &json!("admin")));
}
