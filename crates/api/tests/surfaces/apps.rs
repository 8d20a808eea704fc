//! What is told of an app besides its CVMs: what to filter by, what happened, what was used, its revisions, and going back
//! to one. In every version the same; the lists themselves are in `shapes`.

use serde_json::{Value, json};

use crate::shapes::check;
use crate::support::{COMPOSE, NEWEST, Server, V_STRING_IDS, V2025, V2026, until};

const VERSIONS: [&str; 6] = [V2025, V2026, V_STRING_IDS, NEWEST, "LATEST", "2031-01-01"];

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The forms that an app is asked for by.
async fn forms(server: &Server, app_id: &str) -> Vec<String> {
    let id = server.at(V2026).get(&format!("/apps/{app_id}")).await.expect(200)["id"].clone();
    vec![app_id.to_owned(), format!("app_{app_id}"), format!("0x{app_id}"), app_id.to_uppercase(), text(&id).to_owned()]
}

#[tokio::test]
async fn words_to_filter_by() {
    let server = Server::start().await;
    let shape = "statuses:list image_versions:list instance_types:list kms_slugs:list kms_types:list regions:list
        nodes:list";
    let none = server.at(V2026).get("/apps/filter-options").await.expect(200);
    check(&none, true, shape);
    assert!(none.as_object().expect("lists").values().all(|list| list == &json!([])), "{none}");
    server.deploy_running("first-app").await;
    server.deploy_running("second-app").await;
    server.at(V2026).post_bytes("/cvms/second-app/stop", Vec::new()).await.expect(200);
    server.until_status("second-app", "stopped").await;
    for version in VERSIONS {
        let options = server.at(version).get("/apps/filter-options").await.expect(200);
        let all = json!({
            "statuses": ["running", "stopped"], "image_versions": ["holdfast-1.2.3"],
            "instance_types": ["tdx.small"], "kms_slugs": ["holdfast"], "kms_types": ["phala"],
            "regions": ["lab"], "nodes": ["test-node"],
        });
        assert_eq!(options, all, "{version}");
    }
    // Each word filters the list.
    for query in ["status=stopped&kms_slug=holdfast", "status=stopped&base_image=holdfast-1.2.3&region=lab"] {
        assert_eq!(server.at(V2026).get(&format!("/apps?{query}")).await.expect(200)["total"], 1, "{query}");
    }
}

#[tokio::test]
async fn an_app_by_each_of_its_names_and_after_its_last_cvm() {
    let server = Server::start().await;
    let vm = server.deploy_running("named-app").await;
    let app_id = text(&vm["app_id"]).to_owned();
    let forms = forms(&server, &app_id).await;
    for form in &forms {
        for rest in ["", "/cvms", "/device-allowlist", "/events", "/usage", "/revisions"] {
            assert_eq!(server.at(V2026).get(&format!("/apps/{form}{rest}")).await.status, 200, "{form}{rest}");
        }
    }
    server.at(V2026).delete("/cvms/named-app").await;
    until("it is gone", async || server.at(V2026).get("/apps").await.expect(200)["total"] == 0).await;
    for form in &forms {
        let app = server.at(V2026).get(&format!("/apps/{form}")).await.expect(200);
        assert_eq!((&app["cvm_count"], &app["current_cvm"]), (&json!(0), &Value::Null));
        assert_ne!(server.at(V2026).get(&format!("/apps/{form}/events")).await.expect(200)["total"], 0);
        assert_eq!(server.at(V2026).get(&format!("/apps/{form}/revisions")).await.expect(200)["total"], 1);
    }
    for none in ["x", "prj_aaaaaaaa", &"0".repeat(40)] {
        assert_eq!(server.at(V2026).get(&format!("/apps/{none}/usage")).await.expect(404)["error_code"], "HF-0107");
    }
}

#[tokio::test]
async fn no_contract_lists_devices() {
    let server = Server::start().await;
    let vm = server.deploy("plain-app").await;
    for version in VERSIONS {
        let list = server.at(version).get(&format!("/apps/{}/device-allowlist", text(&vm["app_id"]))).await.expect(200);
        let none = json!({ "is_onchain_kms": false, "allow_any_device": null, "chain_id": null,
            "app_contract_address": null, "devices": [] });
        assert_eq!(list, none);
    }
}

const EVENT: &str = "message_id:text correlation_id:text? event_type:text operation_type:text? target_state:text?
    operation_payload:text? triggered_by:int? instance_id:text timestamp:time priority:null instance_name:text
    state:text? instance_type:text? project_id:int team_id:int user_id:int";

#[tokio::test]
async fn events_of_operations_and_of_the_cvm_itself() {
    let server = Server::start().await;
    let vm = server.deploy_running("eventful").await;
    server.at(V2026).post_bytes("/cvms/eventful/stop", Vec::new()).await.expect(200);
    server.until_status("eventful", "stopped").await;
    server
        .sql("INSERT INTO vm_event (vm_id, event, body, at) SELECT id, 'instance.exited', 'QEMU ended', 1 FROM vm")
        .await;
    let path = format!("/apps/{}/events", text(&vm["app_id"]));
    let events = async |query: &str| server.at(V2026).get(&format!("{path}?{query}")).await.expect(200);
    for version in VERSIONS {
        let all = server.at(version).get(&path).await.expect(200);
        check(&all, true, "events:list total:int");
        all["events"].as_array().expect("events").iter().for_each(|event| check(event, true, EVENT));
    }
    let all = events("").await;
    let list = all["events"].as_array().expect("events");
    assert_eq!(all["total"], list.len());
    let newest = &list[0];
    assert_eq!(newest["event_type"], "instance.power_off.end");
    assert_eq!((&newest["operation_type"], &newest["target_state"]), (&json!("power_off"), &json!("stopped")));
    assert_eq!((&newest["state"], &newest["instance_name"]), (&json!("stopped"), &json!("eventful")));
    assert!(text(&newest["operation_payload"]).contains("status"), "{newest}");
    let own = &list[list.len() - 1];
    assert_eq!((&own["event_type"], &own["operation_payload"]), (&json!("instance.exited"), &json!("QEMU ended")));
    assert_eq!((&own["correlation_id"], &own["triggered_by"]), (&Value::Null, &Value::Null));
    let mut ids: Vec<_> = list.iter().map(|event| text(&event["message_id"])).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), list.len(), "each has an id of its own");

    let instance = text(&newest["instance_id"]).to_owned();
    let uuid = text(&vm["vm_uuid"]).replace('-', "");
    let start = text(&newest["timestamp"]).to_owned();
    let as_new = list.iter().filter(|event| event["timestamp"] == start).count();
    for (query, total) in [
        (format!("instance_id={instance}"), list.len()),
        (format!("instance_id=instance_{instance}"), list.len()),
        (format!("instance_id={uuid}"), list.len()),
        (format!("instance_id={}", "0".repeat(40)), 0),
        ("event_type=instance.exited".to_owned(), 1),
        ("event_type=instance.create.start&operation_type=create".to_owned(), 1),
        ("event_type=instance.exited&operation_type=create".to_owned(), 0),
        (format!("start_date={start}"), as_new),
        ("end_date=1970-01-02".to_owned(), 1),
        ("start_date=2000-01-01&end_date=2000-01-02T00:00:00%2B02:00".to_owned(), 0),
    ] {
        assert_eq!(events(&query).await["total"], total, "{query}");
    }
    let two = events("limit=2").await;
    assert_eq!((two["events"].as_array().map(Vec::len), &two["total"]), (Some(2), &all["total"]));
    for (query, field) in [("limit=0", "limit"), ("limit=1001", "limit"), ("start_date=soon", "start_date")] {
        let wrong = server.at(V2026).get(&format!("{path}?{query}")).await.expect(422);
        assert_eq!(wrong["detail"][0]["loc"], json!(["query", field]));
    }
}

const USAGE: &str = "instance_id:text project_id:int team_id:int timestamp:time event_type:instance.usage cost:number
    details:text usage_type:text billing_start:time billing_end:time duration_minutes:number billing_key:text
    billing_hour:text billing_day:text";

#[tokio::test]
async fn usage_by_cvm_and_day() {
    let server = Server::start().await;
    let vm = server.deploy_running("metered").await;
    server.at(V2026).post_bytes("/cvms/metered/stop", Vec::new()).await.expect(200);
    server.until_status("metered", "stopped").await;
    let path = format!("/apps/{}/usage", text(&vm["app_id"]));
    // What was written down of its life so far, moved to a past whose numbers are known: made at 20:00, up from 22:00 to
    // 03:00 the next day, then stopped; it had one vCPU, 2 GB, and a disk of 20 GB.
    server.sql("UPDATE vm SET created_at = 1772395200000000").await;
    server.sql("UPDATE vm_usage SET at = CASE WHEN running THEN 1772402400000000 ELSE 1772420400000000 END").await;
    let dates = "start_date=2026-03-01&end_date=2026-03-02T12:00:00Z";
    for version in VERSIONS {
        let usage = server.at(version).get(&format!("{path}?{dates}")).await.expect(200);
        check(&usage, true, "usage:list total:int total_cost:number");
        let rows = usage["usage"].as_array().expect("entries");
        rows.iter().for_each(|row| check(row, true, USAGE));
        let shown: Vec<_> = rows
            .iter()
            .map(|row| {
                let details: Value = serde_json::from_str(text(&row["details"])).expect("JSON");
                (text(&row["billing_day"]), text(&row["usage_type"]), row["duration_minutes"].as_f64(), details)
            })
            .collect();
        let hours = |n: f64| Some(n * 60.0);
        assert_eq!(
            shown,
            [
                ("2026-03-01", "compute", hours(2.0), json!({ "vcpu_hours": 2.0, "memory_gb_hours": 4.0 })),
                ("2026-03-01", "disk", hours(4.0), json!({ "disk_gb_hours": 80.0 })),
                ("2026-03-02", "compute", hours(3.0), json!({ "vcpu_hours": 3.0, "memory_gb_hours": 6.0 })),
                ("2026-03-02", "disk", hours(12.0), json!({ "disk_gb_hours": 240.0 })),
            ]
        );
        assert_eq!((&rows[0]["billing_hour"], &usage["total_cost"]), (&json!("2026-03-01T20"), &json!(0.0)));
    }
    let some = server.at(V2026).get(&format!("{path}?{dates}&limit=2&offset=1")).await.expect(200);
    assert_eq!((some["usage"].as_array().map(Vec::len), &some["total"]), (Some(2), &json!(4)));
    assert_eq!(some["usage"][0]["usage_type"], "disk");
    // Nothing happens in the future.
    let ahead = server.at(V2026).get(&format!("{path}?start_date=2100-01-01&end_date=2100-02-01")).await.expect(200);
    assert_eq!(ahead["total"], 0);
    for query in ["start_date=2026-03-02&end_date=2026-03-01", "start_date=2020-01-01&end_date=2026-01-01"] {
        assert_eq!(server.at(V2026).get(&format!("{path}?{query}")).await.expect(400)["error_code"], "HF-0143");
    }
    for (query, field) in [("limit=5001", "limit"), ("offset=-1", "offset"), ("end_date=x", "end_date")] {
        let wrong = server.at(V2026).get(&format!("{path}?{query}")).await.expect(422);
        assert_eq!(wrong["detail"][0]["loc"], json!(["query", field]));
    }
}

#[tokio::test]
async fn a_new_size_is_metered_from_its_moment_and_a_stay_adds_nothing() {
    let server = Server::start().await;
    let vm = server.deploy_running("growing").await;
    server.at(V2026).patch("/cvms/growing/resources", &json!({ "vcpu": 2, "memory": 4096 })).await.expect(202);
    server.until_status("growing", "running").await;
    server.at(V2026).post("/cvms/growing/restart", &json!({})).await.expect(200);
    server.until_status("growing", "running").await;
    let marks = server.control.store.usage_marks(&[vm["id"].as_i64().expect("an id")], server.control.now()).await;
    let marks: Vec<_> =
        marks.expect("marks").into_values().flatten().map(|mark| (mark.running, mark.vcpu, mark.memory_mb)).collect();
    assert_eq!(marks, [(true, 1, 2048), (true, 2, 4096)]);
}

const REVISION: &str = "revision_id:text app_id:text vm_uuid:text compose_hash:text created_at:time trace_id:text?
    operation_type:text triggered_by:object cvm:object workspace:object";

/// Two revisions: the compose file that it was deployed with, and another one.
async fn updated_app(server: &Server, name: &str) -> (String, Vec<Value>) {
    let vm = server.deploy_running(name).await;
    let compose = COMPOSE.replace("hello", "goodbye");
    let update = json!({ "docker_compose_file": compose });
    server.at(V2026).patch(&format!("/cvms/{name}"), &update).await.expect(202);
    server.until_status(name, "running").await;
    let app_id = text(&vm["app_id"]).to_owned();
    let list = server.at(V2026).get(&format!("/apps/{app_id}/revisions")).await.expect(200);
    let revisions = list["revisions"].as_array().expect("revisions").clone();
    assert_eq!(revisions.len(), 2, "{list}");
    (app_id, revisions)
}

#[tokio::test]
async fn revisions() {
    let server = Server::start().await;
    let (app_id, listed) = updated_app(&server, "revised").await;
    let path = format!("/apps/{app_id}/revisions");
    for version in VERSIONS {
        let list = server.at(version).get(&path).await.expect(200);
        check(&list, true, "revisions:list total:int page:int page_size:int total_pages:int");
        assert_eq!((&list["total"], &list["page_size"], &list["total_pages"]), (&json!(2), &json!(50), &json!(1)));
        for revision in list["revisions"].as_array().expect("revisions") {
            check(revision, true, REVISION);
            check(&revision["triggered_by"], true, "object_type:user id:usr_ username:text avatar_url:text?");
            check(&revision["cvm"], true, "object_type:cvm id:cvm_ name:text app_id:text vm_uuid:text");
            check(&revision["workspace"], true, "object_type:workspace id:wks_ name:text slug:text avatar_url:text?");
        }
    }
    assert_eq!(
        (&listed[0]["operation_type"], &listed[1]["operation_type"]),
        (&json!("compose_update"), &json!("create"))
    );
    assert_ne!(listed[0]["compose_hash"], listed[1]["compose_hash"]);
    for revision in &listed {
        let one = format!("{path}/{}", text(&revision["revision_id"]));
        let detail = server.at(V2026).get(&one).await.expect(200);
        check(&detail, true, &format!("{REVISION} compose_file:object encrypted_env:text user_config:text"));
        let raw = server.at(V2026).get(&format!("{one}?raw_compose_file=true")).await.expect(200);
        let bytes = text(&raw["compose_file"]);
        assert_eq!(holdfast_model::compose::sha256_hex(bytes), text(&revision["compose_hash"]), "the very bytes");
        assert_eq!(serde_json::from_str::<Value>(bytes).expect("JSON"), detail["compose_file"]);
    }
    let second = server.at(V2026).get(&format!("{path}?page=2&page_size=1")).await.expect(200);
    assert_eq!((&second["revisions"][0], &second["total_pages"]), (&listed[1], &json!(2)));
    assert_eq!(server.at(V2026).get(&format!("{path}?page_size=1000")).await.status, 200);
    for (query, field) in [("page_size=1001", "page_size"), ("page=0", "page")] {
        let wrong = server.at(V2026).get(&format!("{path}?{query}")).await.expect(422);
        assert_eq!(wrong["detail"][0]["loc"], json!(["query", field]));
    }
    let uuid = text(&listed[0]["vm_uuid"]);
    for none in ["1", "x-1", &format!("{uuid}-3"), &format!("{uuid}-0"), uuid] {
        assert_eq!(
            server.at(V2026).get(&format!("{path}/{none}")).await.expect(404)["error_code"],
            "HF-0142",
            "{none}"
        );
    }
    // Of another app, it is none.
    let other = server.deploy_running("other-app").await;
    let foreign = format!("/apps/{}/revisions/{}", text(&other["app_id"]), text(&listed[0]["revision_id"]));
    assert_eq!(server.at(V2026).get(&foreign).await.expect(404)["error_code"], "HF-0142");
}

#[tokio::test]
async fn redeploying_a_revision() {
    let server = Server::start().await;
    let (app_id, revisions) = updated_app(&server, "going-back").await;
    let hash = async || server.at(V2026).get("/cvms/going-back").await.expect(200)["compose_hash"].clone();
    assert_eq!(hash().await, revisions[0]["compose_hash"]);
    let first = text(&revisions[1]["revision_id"]).to_owned();

    // The app goes back to what it was deployed with, and has one revision more.
    let path = format!("/apps/{app_id}/revisions/{first}/redeploy");
    let answer = server.at(V2026).post_bytes(&path, Vec::new()).await.expect(202);
    check(&answer, true, "status:in_progress message:text correlation_id:text items:list");
    check(&answer["items"][0], true, "vm_uuid:text correlation_id:text error_code:null error:null");
    assert_eq!(answer["items"][0]["vm_uuid"], revisions[0]["vm_uuid"]);
    server.until_status("going-back", "running").await;
    assert_eq!(hash().await, revisions[1]["compose_hash"]);
    let list = server.at(V2026).get(&format!("/apps/{app_id}/revisions")).await.expect(200);
    assert_eq!((&list["total"], &list["revisions"][0]["operation_type"]), (&json!(3), &json!("compose_update")));

    // And forth again, asked of the CVM.
    let second = text(&revisions[0]["revision_id"]).to_owned();
    let answer =
        server.at(V2026).post_bytes(&format!("/cvms/going-back/revisions/{second}/redeploy"), Vec::new()).await;
    let answer = answer.expect(202);
    assert!(answer["correlation_id"].is_string(), "{answer}");
    server.until_status("going-back", "running").await;
    assert_eq!(hash().await, revisions[0]["compose_hash"]);

    // What is in force already is done at once and adds no revision.
    let chosen = json!({ "vm_uuids": [text(&revisions[0]["vm_uuid"]).replace('-', "")] });
    let path = format!("/apps/{app_id}/revisions/{second}/redeploy");
    server.at(V2026).post(&path, &chosen).await.expect(202);
    server.until_status("going-back", "running").await;
    assert_eq!(server.at(V2026).get(&format!("/apps/{app_id}/revisions")).await.expect(200)["total"], 4);
}

#[tokio::test]
async fn what_cannot_be_redeployed() {
    let server = Server::start().await;
    let (app_id, revisions) = updated_app(&server, "staying").await;
    let other = server.deploy_running("another").await;
    let revision = text(&revisions[1]["revision_id"]).to_owned();
    let path = format!("/apps/{app_id}/revisions/{revision}/redeploy");
    let post = async |path: &str, body: Value| server.at(V2026).post(path, &body).await;
    assert_eq!(post(&path, json!({ "vm_uuids": [other["vm_uuid"]] })).await.expect(404)["error_code"], "ERR-03-001");
    assert_eq!(post(&path, json!({ "vm_uuids": [] })).await.expect(404)["error_code"], "ERR-03-001");
    assert_eq!(
        post(&path, json!({ "vm_uuids": "x" })).await.expect(422)["detail"][0]["loc"],
        json!(["body", "vm_uuids"])
    );
    let missing = format!("/apps/{app_id}/revisions/{}-9/redeploy", text(&revisions[0]["vm_uuid"]));
    assert_eq!(post(&missing, json!({})).await.expect(404)["error_code"], "HF-0142");
    let foreign = format!("/cvms/another/revisions/{revision}/redeploy");
    assert_eq!(post(&foreign, json!({})).await.expect(404)["error_code"], "HF-0142");
    let proven = format!("{path}?transaction_hash=0x00");
    assert_eq!(post(&proven, json!({})).await.expect(400)["error_code"], "ERR-02-009");
    // A CVM that is busy.
    server.held.store(true, std::sync::atomic::Ordering::Relaxed);
    server.at(V2026).post("/cvms/staying/restart", &json!({})).await.expect(200);
    for path in [&path, &format!("/cvms/staying/revisions/{revision}/redeploy")] {
        assert_eq!(post(path, json!({})).await.expect(409)["error_code"], "HF-0104");
    }
    server.held.store(false, std::sync::atomic::Ordering::Relaxed);
}
