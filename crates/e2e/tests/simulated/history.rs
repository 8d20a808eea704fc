//! Operations against what was done, in each of the three views.
//!
//! The one rule: the views differ in words alone; ids, order and outcome are the same ones.

use holdfast_e2e::cloud::{Cloud, SOON, text};
use holdfast_harness::operation;
use serde_json::{Value, json};

fn page(cloud: &Cloud, path: &str) -> Value {
    let answer = cloud.client.get(path).expect("the server answers");
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer.json()
}

fn items(value: &Value) -> Vec<Value> {
    value["items"].as_array().cloned().unwrap_or_else(|| panic!("no items in {value}"))
}

/// A life of a CVM; answers its uuid.
fn live(cloud: &Cloud) -> String {
    let cvm = cloud.deployed("history", SOON);
    for verb in ["stop", "start", "restart"] {
        let id = cloud.power(&cvm, verb);
        cloud.done(&id, SOON);
    }
    cloud.deleted(&cvm);
    cvm
}

#[test]
fn every_view_tells_what_was_done() {
    let cloud = Cloud::simulated(5);
    let cvm = live(&cloud);
    let phala = items(&page(&cloud, &format!("/api/v1/cvms/{cvm}/operations")));
    let types: Vec<_> = phala.iter().rev().map(|o| text(&o["operation_type"])).collect();
    assert_eq!(types, ["create", "power_off", "power_on", "restart", "delete"], "newest first, deleted or not");
    let targets: Vec<_> = phala.iter().rev().map(|o| text(&o["target_state"])).collect();
    assert_eq!(targets, ["running", "stopped", "running", "running", "deleted"]);
    let nirvana = items(&page(&cloud, "/v1/operations"));
    let shown: Vec<_> = nirvana.iter().map(|o| (text(&o["kind"]), text(&o["type"]), text(&o["status"]))).collect();
    let verbs = ["delete", "restart", "update", "update", "create"];
    assert_eq!(shown, verbs.map(|verb| ("vm".to_owned(), verb.to_owned(), "done".to_owned())));
    for (one, two) in phala.iter().zip(&nirvana) {
        assert_eq!(one["correlation_id"], two["id"]);
        assert_eq!(one["status"], "completed");
        assert_eq!(one["instance_name"], "history");
        assert!(one["duration_ms"].as_u64().is_some() && one["completed_at"].is_string(), "{one}");
        let changes = &two["details"]["changes"];
        assert!(changes.is_object(), "{two}");
        let ours = operation::by_id(&cloud.client, &text(&two["id"])).expect("the third view has it");
        assert_eq!(ours["status"], "done");
        let single = page(&cloud, &format!("/v1/operations/{}", text(&two["id"])));
        assert_eq!(&single, two, "one by id is the same as one in the list");
        check_events(one, &ours);
    }
    let power_off = nirvana.iter().rfind(|o| o["type"] == "update").expect("power_off is the older update");
    assert_eq!(power_off["details"]["changes"]["status"], json!({"from": "running", "to": "stopped"}));
}

fn check_events(phala: &Value, ours: &Value) {
    let verb = text(&phala["operation_type"]);
    let events: Vec<_> = phala["events"].as_array().expect("events").iter().map(|e| text(&e["event_type"])).collect();
    assert_eq!(events, operation::events(ours), "both views have the same events");
    assert_eq!(events.first(), Some(&format!("instance.{verb}.start")));
    assert_eq!(events.last(), Some(&format!("instance.{verb}.end")));
    let steps: Vec<_> = phala["sub_operations"].as_array().expect("steps").iter().map(text).collect();
    assert_eq!(steps, operation::steps(ours), "the steps that ran, in order");
    for step in steps {
        assert!(events.contains(&format!("instance.{verb}.{step}.start")), "{step} in {events:?}");
        assert!(events.contains(&format!("instance.{verb}.{step}.end")), "{step} in {events:?}");
    }
    let times: Vec<_> = phala["events"].as_array().expect("events").iter().map(|e| text(&e["timestamp"])).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn filters_and_cursors_find_every_operation_once() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("pages", SOON);
    for round in 0..12 {
        let id = cloud.power(&cvm, if round % 2 == 0 { "stop" } else { "start" });
        cloud.done(&id, SOON);
    }
    let path = format!("/api/v1/cvms/{cvm}/operations");
    let all: Vec<_> =
        items(&page(&cloud, &format!("{path}?limit=100"))).iter().map(|o| text(&o["correlation_id"])).collect();
    assert_eq!(all.len(), 13);
    let mut paged = Vec::new();
    let mut next = format!("{path}?limit=5");
    loop {
        let now = page(&cloud, &next);
        paged.extend(items(&now).iter().map(|o| text(&o["correlation_id"])));
        match now["next_cursor"].as_str() {
            Some(cursor) => next = format!("{path}?limit=5&cursor={cursor}"),
            None => break,
        }
        assert!(paged.len() <= 13, "the cursor goes round in circles");
    }
    assert_eq!(paged, all);
    for (filter, count) in [
        ("operation_types=power_off", 6),
        ("operation_types=create&operation_types=power_on", 7),
        ("operation_types=delete", 0),
        ("start_time=2001-01-01T00:00:00Z", 13),
        ("end_time=2001-01-01T00:00:00Z", 0),
    ] {
        assert_eq!(items(&page(&cloud, &format!("{path}?limit=100&{filter}"))).len(), count, "{filter}");
    }
}
