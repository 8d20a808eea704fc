//! Lists of operations across resources: filters alone and together, orders, cursors both ways, totals.

use holdfast_model::hashid::{self, Prefix};
use serde_json::{Value, json};

use crate::support::{Server, V2026, until};

const NONE: (&str, &str) = ("", "");

/// Five operations, the newest first, as (type, name).
const ALL: [&str; 5] = ["create db-main", "restart web-two", "create web-two", "power_off web-one", "create web-one"];

async fn list(server: &Server, query: &str) -> Value {
    server.at(V2026).any("GET", &format!("/holdfast/v1/operations?{query}"), NONE).await.expect(200)
}

async fn nirvana(server: &Server, query: &str) -> Value {
    server.at(V2026).any("GET", &format!("/v1/operations?{query}"), NONE).await.expect(200)
}

fn shown(page: &Value) -> Vec<String> {
    let of = |item: &Value| format!("{} {}", text(&item["operation_type"]), text(&item["resource"]["name"]));
    page["items"].as_array().expect("items").iter().map(of).collect()
}

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().expect("items").iter().map(|item| text(&item["id"])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Lets the stranger work in the first workspace, as a member.
pub async fn second_member(server: &Server) -> String {
    let key = server.stranger("user").await;
    server.sql("INSERT INTO workspace_member (workspace_id, user_id, role) VALUES (1, 2, 'member')").await;
    server.sql("UPDATE api_key SET workspace_id = 1 WHERE user_id = 2").await;
    key
}

/// A server whose ledger holds [`ALL`]; the stop counts as failed, and the restart was the stranger's.
async fn server_with_history() -> Server {
    let server = Server::start().await;
    server.deploy_running("web-one").await;
    server.at(V2026).post_bytes("/cvms/web-one/stop", Vec::new()).await.expect(200);
    server.until_status("web-one", "stopped").await;
    server.deploy_running("web-two").await;
    let key = second_member(&server).await;
    server.with_key(&key).post_bytes("/cvms/web-two/restart", Vec::new()).await.expect(200);
    until("the restart is over", async || list(&server, "type=restart").await["items"][0]["status"] == "done").await;
    server.deploy_running("db-main").await;
    server.sql("UPDATE operation SET status = 'failed' WHERE operation_type = 'power_off'").await;
    server
}

#[tokio::test]
async fn filters_alone_and_together() {
    let server = server_with_history().await;
    let all = list(&server, "").await;
    assert_eq!(shown(&all), ALL);
    assert_eq!((&all["total"], &all["total_is_estimate"]), (&json!(5), &json!(false)));
    let at = |i: usize| text(&all["items"][i]["created_at"]);
    let one = text(&all["items"][4]["resource"]["id"]);
    let (stop, restart) = (text(&all["items"][3]["id"]), text(&all["items"][1]["id"]));
    let usr = hashid::encode(Prefix::User, 2);
    let (min, max) = (at(3), at(1));
    let user = server.control.store.operation_requests(&restart).await.expect("a query").remove(0).actor_id;
    let cases = [
        ("kind=vm", &[0, 1, 2, 3, 4][..]),
        ("kind=vpc", &[]),
        ("type=restart", &[1]),
        ("type=update", &[3]),
        ("operation_type=create", &[0, 2, 4]),
        ("operation_type=restart,power_off", &[1, 3]),
        ("operation_type=restart&operation_type=create", &[0, 1, 2, 4]),
        ("operation_type=delete", &[]),
        ("status=failed", &[3]),
        ("status=failed,cancelled,stuck", &[3]),
        ("status=done&status=failed", &[0, 1, 2, 3, 4]),
        ("status=done", &[0, 1, 2, 4]),
        ("status=pending,running", &[]),
        (&format!("resource={one}"), &[3, 4]),
        (&format!("resource={stop}"), &[]),
        ("actor=stranger", &[1]),
        (&format!("actor={usr}"), &[1]),
        (&format!("actor={user}"), &[1]),
        ("actor=admin", &[0, 2, 3, 4]),
        ("actor=nobody", &[]),
        (&format!("correlation_id={stop}"), &[3]),
        ("name_prefix=web-", &[1, 2, 3, 4]),
        ("name_prefix=web-t", &[1, 2]),
        ("name_prefix=eb-", &[]),
        ("name_prefix=web-%25", &[]),
        (&format!("created_at_min={min}"), &[0, 1, 2, 3]),
        (&format!("created_at_max={max}"), &[1, 2, 3, 4]),
        (&format!("created_at_min={min}&created_at_max={max}"), &[1, 2, 3]),
        // Together.
        ("name_prefix=web-&operation_type=create", &[2, 4]),
        ("name_prefix=web-&status=failed", &[3]),
        ("name_prefix=web-&status=done&actor=admin", &[2, 4]),
        (&format!("resource={one}&type=create"), &[4]),
        (&format!("resource={one}&kind=vpc"), &[]),
        ("actor=admin&status=done&kind=vm&type=create", &[0, 2, 4]),
        ("type=restart&operation_type=create", &[]),
        (&format!("correlation_id={stop}&status=done"), &[]),
        (&format!("name_prefix=web-&created_at_min={min}&created_at_max={max}"), &[1, 2, 3]),
        (&format!("status=done&operation_type=create,restart&created_at_max={max}"), &[1, 2, 4]),
    ];
    for (query, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|i| ALL[*i]).collect();
        let page = list(&server, query).await;
        assert_eq!(shown(&page), expected, "{query}");
        assert_eq!(page["total"], expected.len(), "{query}");
        // Every order shows the same, and the other way round.
        let mut reversed = list(&server, &format!("{query}&sort=created_at:asc")).await;
        reversed["items"].as_array_mut().expect("items").reverse();
        assert_eq!(ids(&page), ids(&reversed), "{query}");
        for sort in ["updated_at:asc", "updated_at:desc,created_at:asc"] {
            let mut sorted = ids(&list(&server, &format!("{query}&sort={sort}")).await);
            let mut expected = ids(&page);
            sorted.sort();
            expected.sort();
            assert_eq!(sorted, expected, "{query} {sort}");
        }
    }
}

#[tokio::test]
async fn the_list_of_nirvana_takes_its_filters_and_orders() {
    let server = server_with_history().await;
    let all = ids(&list(&server, "").await);
    let page = nirvana(&server, "").await;
    assert_eq!(ids(&page), all);
    let (project, resource) = (text(&page["items"][0]["project_id"]), text(&page["items"][4]["resource_id"]));
    let at = text(&page["items"][3]["created_at"]);
    let cases = [
        (&format!("project_id={project}"), &[0, 1, 2, 3, 4][..]),
        (&format!("project_id={resource}"), &[]),
        (&format!("project_id={project}&resource_id={resource}&type=create"), &[4]),
        (&"kind=vm&status=failed".to_owned(), &[3]),
        (&"status=unknown".to_owned(), &[]),
        (&"kind=nks_load_balancer".to_owned(), &[]),
        (&"kind=connect_connection".to_owned(), &[]),
        (&"kind=nks_node".to_owned(), &[]),
        (&"kind=nks_node_pool".to_owned(), &[]),
        (&format!("created_at_min={at}&created_at_max={at}"), &[3]),
        (&"sort=created_at:asc".to_owned(), &[4, 3, 2, 1, 0]),
        (&"sort=created_at:asc,updated_at:desc".to_owned(), &[4, 3, 2, 1, 0]),
        (&"sort=created_at:desc,updated_at:desc&type=create".to_owned(), &[0, 2, 4]),
    ];
    for (query, expected) in cases {
        let page = nirvana(&server, query).await;
        let expected: Vec<_> = expected.iter().map(|i| all[*i].clone()).collect();
        assert_eq!(ids(&page), expected, "{query}");
        assert_eq!(page["pagination"]["total_count"], expected.len(), "{query}");
    }
    // What changed last comes first.
    server.sql("UPDATE operation SET updated_at = updated_at + 60000000 WHERE operation_type = 'power_off'").await;
    for query in ["sort=updated_at:desc", "sort=updated_at:desc,created_at:asc", "sort=updated_at:desc&kind=vm"] {
        assert_eq!(ids(&nirvana(&server, query).await)[0], all[3], "{query}");
    }
    assert_eq!(ids(&nirvana(&server, "sort=updated_at:asc").await)[4], all[3]);
}

#[tokio::test]
async fn values_that_are_wrong_say_where() {
    let server = Server::start().await;
    let ours = [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("kind=dog", "kind"),
        ("type=explode", "type"),
        ("operation_type=create,explode", "operation_type"),
        ("status=done&status=odd", "status"),
        ("resource=web-one", "resource"),
        ("correlation_id=1", "correlation_id"),
        ("created_at_min=yesterday", "created_at_min"),
        ("created_at_max=1", "created_at_max"),
        ("sort=name:asc", "sort"),
        ("sort=created_at", "sort"),
        ("sort=created_at:up", "sort"),
        ("sort=created_at:asc,created_at:desc", "sort"),
    ];
    for (query, field) in ours {
        let path = format!("/holdfast/v1/operations?{query}");
        let body = server.at(V2026).any("GET", &path, NONE).await.expect(422);
        assert_eq!(body["error"]["details"][0]["loc"], json!(["query", field]), "{query}");
    }
    for (query, field) in [
        ("limit=101", "limit"),
        ("kind=dog", "kind"),
        ("status=stuck", "status"),
        ("type=power_on", "type"),
        ("project_id=1", "project_id"),
        ("resource_id=1", "resource_id"),
        ("sort=status:asc", "sort"),
        ("created_at_min=x", "created_at_min"),
    ] {
        let body = server.at(V2026).any("GET", &format!("/v1/operations?{query}"), NONE).await.expect(422);
        assert!(text(&body["message"]).starts_with(&format!("{field}: ")), "{query}: {body}");
    }
}

#[tokio::test]
async fn cursors_go_both_ways_while_others_write() {
    let server = server_with_history().await;
    for (query, late) in
        [("sort=created_at:desc", "late-one"), ("sort=created_at:asc", "late-two"), ("name_prefix=web-", "late-three")]
    {
        let expected = ids(&list(&server, query).await);
        let page = |cursor: Value| {
            let cursor = cursor.as_str().map(|c| format!("&cursor={c}")).unwrap_or_default();
            let query = format!("{query}&limit=2{cursor}");
            let server = &server;
            async move { list(server, &query).await }
        };
        let first = page(Value::Null).await;
        assert_eq!(first["previous_cursor"], Value::Null, "{query}");
        server.deploy_running(late).await;
        let second = page(first["next_cursor"].clone()).await;
        assert_eq!([ids(&first), ids(&second)].concat(), expected[..4], "{query}");
        let back = page(second["previous_cursor"].clone()).await;
        assert_eq!(ids(&back), ids(&first), "{query}");
        // What is new lies before the first page of the newest, and nowhere before that of the oldest.
        assert_eq!(back["previous_cursor"].is_null(), query != "sort=created_at:desc", "{query}");
        if query == "sort=created_at:desc" {
            assert_eq!(shown(&page(back["previous_cursor"].clone()).await), [format!("create {late}")]);
        }
    }
}

#[tokio::test]
async fn a_cursor_is_good_for_its_own_list_only() {
    let server = server_with_history().await;
    let made_for = "kind=vm&sort=updated_at:asc&limit=2";
    let cursor = text(&list(&server, made_for).await["next_cursor"]);
    list(&server, &format!("{made_for}&cursor={cursor}")).await;
    let bent = format!("{}{}", if cursor.starts_with('A') { 'B' } else { 'A' }, &cursor[1..]);
    let refused = [
        format!("/holdfast/v1/operations?kind=vm&sort=updated_at:desc&cursor={cursor}"),
        format!("/holdfast/v1/operations?kind=vm&cursor={cursor}"),
        format!("/holdfast/v1/operations?kind=vm&sort=updated_at:asc,created_at:asc&cursor={cursor}"),
        format!("/holdfast/v1/operations?sort=updated_at:asc&cursor={cursor}"),
        format!("/holdfast/v1/operations?kind=vm&name_prefix=web&sort=updated_at:asc&cursor={cursor}"),
        format!("/holdfast/v1/operations?kind=vm&sort=updated_at:asc&cursor={bent}"),
        "/holdfast/v1/operations?kind=vm&sort=updated_at:asc&cursor=x".to_owned(),
        format!("/v1/operations?kind=vm&sort=updated_at:asc&cursor={cursor}"),
        format!("/holdfast/v1/audit-logs?cursor={cursor}"),
    ];
    for path in refused {
        let body = server.at(V2026).any("GET", &path, NONE).await.expect(400);
        assert!(body.to_string().contains("HF-0008"), "{path}: {body}");
    }
}

#[tokio::test]
async fn another_workspace_sees_nothing() {
    let server = Server::start().await;
    server.deploy_running("hidden-app").await;
    let all = list(&server, "").await;
    let (id, resource) = (ids(&all).remove(0), text(&all["items"][0]["resource"]["id"]));
    let project = text(&all["items"][0]["project_id"]);
    let key = server.stranger("admin").await;
    for query in [
        String::new(),
        format!("correlation_id={id}"),
        format!("resource={resource}"),
        "name_prefix=hidden".to_owned(),
        "actor=admin".to_owned(),
        "status=done".to_owned(),
        "sort=updated_at:desc".to_owned(),
    ] {
        let path = format!("/holdfast/v1/operations?{query}");
        let page = server.with_key(&key).any("GET", &path, NONE).await.expect(200);
        assert_eq!((&page["items"], &page["total"]), (&json!([]), &json!(0)), "{query}");
    }
    for query in [format!("project_id={project}"), format!("resource_id={resource}")] {
        let page = server.with_key(&key).any("GET", &format!("/v1/operations?{query}"), NONE).await.expect(200);
        assert_eq!(page["items"], json!([]), "{query}");
    }
}

#[tokio::test]
async fn totals_are_exact_to_a_thousand_and_say_when_they_are_not() {
    let server = Server::start().await;
    server.deploy_running("web-one").await;
    let copy = |count: &'static str| {
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
             INSERT INTO operation (uuid, workspace_id, project_id, kind, verb, operation_type, plan_version,
                target_state, resource_id, resource_uuid, resource_name, user_id, username, email, request_id, request,
                diff, status, status_before, direction, step, step_entered, generation, sub_operations, lease_token,
                attempts, created_at, updated_at)
             SELECT lower(hex(randomblob(16))), workspace_id, project_id, kind,
                CASE WHEN n.i % 2 = 0 THEN 'restart' ELSE verb END,
                CASE WHEN n.i % 2 = 0 THEN 'restart' ELSE operation_type END, plan_version, target_state, resource_id,
                resource_uuid, 'web-' || (n.i % 10), user_id, username, email, request_id, request, diff, status,
                status_before, direction, step, step_entered, generation, sub_operations, 0, 0, created_at + n.i,
                updated_at + n.i FROM n, operation WHERE operation.id = 1"
        );
        server.sql(Box::leak(sql.into_boxed_str()))
    };
    copy("999").await;
    for query in ["limit=1", "limit=1&name_prefix=web-", "limit=1&status=done"] {
        let page = list(&server, query).await;
        assert_eq!((&page["total"], &page["total_is_estimate"]), (&json!(1000), &json!(false)), "{query}");
    }
    copy("4000").await;
    for (query, true_number) in [
        ("limit=1", 5000),
        ("limit=1&operation_type=restart", 2499),
        ("limit=1&type=create,", 2501),
        ("limit=1&operation_type=restart,create", 5000),
        ("limit=1&name_prefix=web-", 5000),
        ("limit=1&status=done&sort=updated_at:desc", 5000),
    ] {
        let page = list(&server, query.trim_end_matches(',')).await;
        assert_eq!(page["total_is_estimate"], true, "{query}");
        let total = page["total"].as_i64().expect("a number");
        assert!((total - true_number).abs() * 5 < true_number, "{query}: {total} for {true_number}");
    }
    let exact = list(&server, "limit=1&name_prefix=web-5").await;
    assert_eq!((&exact["total"], &exact["total_is_estimate"]), (&json!(500), &json!(false)));
    let count = nirvana(&server, "limit=1").await["pagination"]["total_count"].as_i64().expect("a number");
    assert!((4500..=5500).contains(&count), "{count}");
}
