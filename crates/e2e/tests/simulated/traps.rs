//! What the official clients trip over, one trap a test, as raw requests: what each of them is about is said at it.
//!
//! The one rule: the request is the one that a client really sends, down to its headers, because that is where they differ
//! from what anybody would write by hand.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON, text};
use holdfast_harness::client::{Answer, Client};
use holdfast_harness::operation;
use serde_json::{Value, json};

const VERSIONS: [&str; 4] = ["2025-10-28", "2026-01-21", "2026-05-22", "2026-06-23"];

fn send(cloud: &Cloud, method: &str, path: &str, version: &str, body: Option<&str>) -> Answer {
    let headers = [("X-Phala-Version", version), ("Content-Type", "application/json")];
    let body = body.map(|text| text.as_bytes().to_vec());
    cloud.client.send(method, &format!("/api/v1{path}"), &headers, body).expect("the server answers")
}

fn get(cloud: &Cloud, path: &str, version: &str) -> Value {
    send(cloud, "GET", path, version, None).ok().unwrap_or_else(|e| panic!("{path} at {version}: {e}"))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
}

fn kind(answer: &Answer) -> &str {
    answer.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// An id is an integer up to 2026-01-21 and text after it: clients of either kind refuse the other. A version that nobody
/// knows yet gets what the newest known one gets, and a request without one what its key says.
#[test]
fn ids_by_version() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("version-app", SOON);
    let restarted = |version: &str| {
        let answer = send(&cloud, "POST", &format!("/cvms/{cvm}/restart"), version, Some("{\"force\":false}"));
        let id = answer.ok().expect("accepted")["id"].clone();
        cloud.done(&text(&operation::newest(&cloud.client, &cvm).expect("an operation")["id"]), SOON);
        id
    };
    for version in ["2025-10-28", "2026-01-21", "2025-05-31"] {
        assert!(restarted(version).is_i64(), "{version}");
    }
    for version in ["2026-05-22", "2026-06-23", "2031-01-01", "LATEST", "latest"] {
        assert!(restarted(version).as_str().is_some_and(|id| id.starts_with("cvm_")), "{version}");
    }
    let headers = [("Content-Type", "application/json")];
    let path = format!("/api/v1/cvms/{cvm}");
    let bare = cloud.client.send("GET", &path, &headers, None).and_then(Answer::ok).expect("an answer");
    assert_eq!(bare["id"], get(&cloud, &format!("/cvms/{cvm}"), "2025-10-28")["id"], "a new key's own version");
}

/// Start, stop and shutdown come with `Content-Type: application/json` and no body at all.
#[test]
fn empty_bodies_that_claim_to_be_json() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("empty-app", SOON);
    for (verb, status) in [("stop", "stopping"), ("start", "starting"), ("restart", "restarting")] {
        let answer = send(&cloud, "POST", &format!("/cvms/{cvm}/{verb}"), "2026-01-21", Some(""));
        assert_eq!(answer.ok().expect("accepted")["status"], status);
        cloud.done(&text(&operation::newest(&cloud.client, &cvm).expect("an operation")["id"]), SOON);
    }
    // Replicas, too, and without any content type where there is nothing to type.
    let path = format!("/api/v1/cvms/{cvm}/replicas");
    let answer = cloud.client.send("POST", &path, &[], Some(Vec::new())).expect("the server answers");
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// Whole numbers as floats, flags as 0 and 1, the KMS in capitals, keys that no schema has: all of that is sent by one client
/// or another.
#[test]
fn lenient_bodies() {
    let cloud = Cloud::simulated(1);
    let extra = json!({ "kms": "PHALA", "vcpu": 2.0, "memory": 2048.0, "disk_size": 20.0, "instance_type": null,
        "kms_urls": [], "gateway_urls": null, "env_keys": [], "unheard_of": { "a": [1] } });
    let cvm = cloud.client.deploy("lenient-app", COMPOSE, &extra).expect("accepted");
    cloud.done(&text(&operation::newest(&cloud.client, &cvm).expect("an operation")["id"]), SOON);
    let patch = |path: &str, body: Value| {
        let answer = send(&cloud, "PATCH", path, "2026-06-23", Some(&body.to_string()));
        assert_eq!(answer.status, 202, "{body}: {}", answer.text);
        let newest = operation::newest(&cloud.client, &cvm).expect("an operation");
        cloud.done(&text(&newest["id"]), SOON)
    };
    let path = format!("/cvms/{cvm}");
    assert_eq!(patch(&path, json!({ "vcpu": 1.0 }))["changes"]["vcpu"], json!({ "from": 2, "to": 1 }));
    patch(&path, json!({ "memory": 4096.0, "disk_size": 30.0, "public_logs": 1 }));
    // The TypeScript client leaks the id into the body; the command line sends its flag as a number.
    let leaked = json!({ "id": "lenient-app", "vcpu": 2, "memory": 4096, "disk_size": 30, "allow_restart": 1 });
    patch(&format!("/cvms/{cvm}/resources"), leaked);
    // Nulls for what is not meant, as the Python client sends them.
    let nulls = json!({ "public_sysinfo": false, "public_logs": true, "public_tcbinfo": null });
    let answer = send(&cloud, "PATCH", &format!("/cvms/{cvm}/visibility"), "2026-06-23", Some(&nulls.to_string()));
    assert!((200..300).contains(&answer.status), "{}", answer.text);
    let detail = get(&cloud, &format!("/cvms/{cvm}"), "2026-01-21");
    assert_eq!((&detail["resource"]["vcpu"], &detail["resource"]["disk_in_gb"]), (&json!(2), &json!(30)));
    let refused = send(&cloud, "PATCH", &path, "2026-06-23", Some("{\"vcpu\":1.5}"));
    assert_eq!((refused.status, &refused.json()["detail"][0]["loc"]), (422, &json!(["body", "vcpu"])));
}

/// Where a client's schema is strict, one key too many is as bad as one too few.
#[test]
fn exact_keys() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("strict-app", SOON);
    let app = text(&get(&cloud, &format!("/cvms/{cvm}"), "2026-01-21")["app_id"]);
    for version in VERSIONS {
        let page = get(&cloud, "/kms", version);
        assert_eq!(keys(&page), ["items", "page", "page_size", "pages", "total"]);
        let key = get(&cloud, &format!("/kms/phala/pubkey/{app}"), version);
        assert_eq!(keys(&key), ["public_key", "signature"]);
        let next = get(&cloud, "/kms/phala/next_app_id?counts=2", version);
        assert_eq!((keys(&next), keys(&next["app_ids"][0])), (vec!["app_ids"], vec!["app_id", "nonce"]));
        let families = get(&cloud, "/instance-types", version);
        assert_eq!((keys(&families), keys(&families["result"][0])), (vec!["result"], vec!["items", "name", "total"]));
        assert_eq!(keys(&get(&cloud, "/instance-types/cpu", version)), ["family", "items", "total"]);
        // Off any chain, and said so in the way that makes the clients leave chains alone.
        assert_eq!(get(&cloud, "/kms?page_size=100&is_onchain=true", version)["items"], json!([]));
    }
    let kms = get(&cloud, "/kms", "2026-01-21")["items"][0].clone();
    for key in ["slug", "chain_id", "kms_contract_address", "gateway_app_id"] {
        assert!(kms.get(key).is_some(), "{key} must be there, if only as null: {kms}");
    }
    // No nulls where the schema has none.
    for version in VERSIONS {
        let state = get(&cloud, &format!("/cvms/{cvm}/state"), version);
        let file = get(&cloud, &format!("/cvms/{cvm}/compose_file"), version);
        for value in [&state, &file] {
            assert!(value.as_object().expect("an object").values().all(|v| !v.is_null()), "{value}");
        }
    }
}

/// An answer's content type decides what the TypeScript client makes of it: text, JSON, or a Blob that nobody expects.
#[test]
fn content_types() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("typed-app", SOON);
    for path in ["docker-compose.yml", "pre-launch-script"] {
        let answer = send(&cloud, "GET", &format!("/cvms/{cvm}/{path}"), "2026-01-21", None);
        assert!(kind(&answer).starts_with("text/plain"), "{path}: {}", kind(&answer));
    }
    let deleted = send(&cloud, "DELETE", &format!("/cvms/{cvm}"), "2026-01-21", None);
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    for path in ["/cvms/nobody", "/nothing", "/cvms/paginated?page=0"] {
        let answer = send(&cloud, "GET", path, "2026-01-21", None);
        assert!(kind(&answer).starts_with("application/json"), "{path}: {}", kind(&answer));
    }
}

/// A structured error is told at the top level, without `detail`: nested in it the Python client does not find it, and beside it
/// the TypeScript one does not.
#[test]
fn errors_at_the_top() {
    let cloud = Cloud::simulated(1);
    for version in VERSIONS {
        let answer = send(&cloud, "GET", "/cvms/nobody", version, None);
        assert_eq!(answer.status, 404);
        assert_eq!(keys(&answer.json()), ["details", "error_code", "links", "message", "suggestions"]);
        assert_eq!(answer.json()["error_code"], "ERR-03-001");
        // And a value that does not fit is told by its place, under `detail` alone.
        let answer = send(&cloud, "GET", "/cvms/paginated?page=0", version, None);
        assert_eq!((answer.status, keys(&answer.json())), (422, vec!["detail"]));
        let first = &answer.json()["detail"][0];
        assert_eq!(first["loc"], json!(["query", "page"]), "{first}");
        assert!(first["msg"].is_string() && first["type"].is_string(), "{first}");
    }
}

/// The command line's `--wait` takes `running` for done: by the time a change is answered the status is another one. A GET is
/// never answered 409 meanwhile; the clients would ask again.
#[test]
fn the_status_leaves_running_at_once() {
    let cloud = Cloud::simulated(300);
    let cvm = cloud.deployed("leaving-app", SOON);
    let changes = [
        ("PATCH", "", json!({ "docker_compose_file": COMPOSE.replace("hello", "goodbye") }), "updating"),
        ("PATCH", "/resources", json!({ "vcpu": 2, "allow_restart": true }), "updating"),
        ("POST", "/restart", json!({ "force": false }), "restarting"),
    ];
    for (method, path, body, word) in changes {
        let answer = send(&cloud, method, &format!("/cvms/{cvm}{path}"), "2026-01-21", Some(&body.to_string()));
        assert!((200..300).contains(&answer.status), "{}", answer.text);
        let detail = get(&cloud, &format!("/cvms/{cvm}"), "2026-01-21");
        assert_eq!((&detail["status"], &detail["in_progress"]), (&json!(word), &json!(true)), "{method} {path}");
        for view in ["", "/state", "/composition", "/compose_file", "/operations", "/operation-status", "/network"] {
            let answer = send(&cloud, "GET", &format!("/cvms/{cvm}{view}"), "2026-01-21", None);
            assert_eq!(answer.status, 200, "{view}: {}", answer.text);
        }
        cloud.done(&text(&operation::newest(&cloud.client, &cvm).expect("an operation")["id"]), SOON);
    }
}

/// The clients take a UUID only with the digits of version 4, and send it without dashes.
#[test]
fn uuids() {
    let cloud = Cloud::simulated(1);
    for name in ["uuid-one", "uuid-two", "uuid-three"] {
        let cvm = cloud.deployed(name, SOON).replace('-', "");
        let digits = cvm.as_bytes();
        assert!(digits.len() == 32 && digits[12] == b'4' && b"89ab".contains(&digits[16]), "{cvm}");
        let batch = json!({ "vm_uuids": [cvm] }).to_string();
        let told = send(&cloud, "POST", "/status/batch", "2026-01-21", Some(&batch)).ok().expect("an answer");
        assert_eq!(keys(&told), [cvm.as_str()], "the key is the id as it was sent");
        assert_eq!(get(&cloud, &format!("/cvms/{cvm}"), "2026-01-21")["name"], name);
    }
}

/// Log URLs are fetched with no header at all, and options are put behind them with `&`.
#[test]
fn log_urls_are_their_own_key() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("logged-app", SOON);
    let stranger = Client::new(cloud.client.base.clone(), "");
    let fetch = |url: &str| stranger.send("GET", url, &[], None).expect("the server answers");
    let console = text(&get(&cloud, &format!("/cvms/{cvm}"), "2025-10-28")["syslog_endpoint"]);
    let container =
        text(&get(&cloud, &format!("/cvms/{cvm}/composition"), "2026-01-21")["containers"][0]["log_endpoint"]);
    let logs = get(&cloud, &format!("/cvms/{cvm}"), "2026-01-21")["logs"].clone();
    for url in [&console, &container, &text(&logs["serial"]), &text(&logs["stdout"]), &text(&logs["stderr"])] {
        assert!(url.starts_with("http") && url.contains('?'), "{url}");
        let answer = fetch(&format!("{url}&tail=5&lines=5&timestamps&ansi"));
        assert_eq!(answer.status, 200, "{}", answer.text);
        let (base, _) = url.split_once('?').expect("a query");
        assert_eq!(fetch(&format!("{base}?tail=5")).status, 401, "without its token");
    }
    for channel in ["serial", "stdout", "stderr"] {
        assert_eq!(fetch(&format!("{console}&ch={channel}&ansi")).status, 200);
    }
    // A container's log is JSON, line by line, with its messages in base64; the client would take a plain word for that.
    let lines = fetch(&format!("{container}&ansi")).text;
    for line in lines.lines() {
        let one: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(["stdout", "stderr"].contains(&one["channel"].as_str().unwrap_or_default()), "{line}");
        let message = text(&one["message"]);
        assert!(message.len().is_multiple_of(4) && !message.contains(' '), "{line}");
    }
    assert!(!lines.is_empty(), "the app has said something");
    assert!(!fetch(&format!("{container}&text&bare&ansi")).text.starts_with('{'));
}

/// Watching goes without a version header, and each event is one `data` line.
#[test]
fn watching_without_a_version() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("watched-app", SOON);
    let host = cloud.client.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("set");
    let query = "target=running&interval=5&timeout=10";
    let key = &cloud.client.key;
    let request = format!(
        "GET /api/v1/cvms/{cvm}/state?{query} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\nAccept: text/event-stream\r\n\
         Cache-Control: no-cache\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let lines: Vec<String> = BufReader::new(stream).lines().map(|line| line.expect("text")).collect();
    assert!(lines.iter().any(|line| line.to_lowercase().starts_with("content-type: text/event-stream")), "{lines:#?}");
    let events: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(events, ["state", "complete"], "a state comes before the end: {lines:#?}");
    let data: Vec<Value> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|d| serde_json::from_str(d).expect("JSON"))
        .collect();
    assert_eq!((&data[0]["status"], keys(&data[1])), (&json!("running"), vec!["elapsed", "status", "target"]));
}
