//! Apps and KMS through the official clients: the SDK's schemas take every answer, and the command line understands it.
//!
//! The one rule: what a client computes itself (a signer, an app id that it names) is compared with what we say.

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON, text};
use holdfast_e2e::sdk::Sdk;
use holdfast_harness::operation;
use serde_json::{Value, json};

const VERSIONS: [&str; 2] = ["2025-10-28", "2026-01-21"];

fn app_id(cloud: &Cloud, cvm: &str) -> String {
    let detail = cloud.client.get(&format!("/api/v1/cvms/{cvm}")).expect("the server answers").json();
    text(&detail["app_id"])
}

#[test]
fn the_kms_through_the_sdk() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("keyed", SOON);
    let app_id = app_id(&cloud, &cvm);
    for version in VERSIONS {
        let sdk = Sdk::new(&cloud, version);
        let list = sdk.call("getKmsList", json!({ "page": 1, "page_size": 10 }));
        assert_eq!(list["total"], 1);
        assert_eq!(sdk.call("getKmsList", json!({ "is_onchain": true }))["items"], json!([]));
        let id = text(&list["items"][0]["id"]);
        for name in [id.as_str(), "holdfast", "phala"] {
            assert_eq!(sdk.call("getKmsInfo", json!({ "kms_id": name })), list["items"][0], "{name}");
        }
        assert_eq!(sdk.try_call("getKmsInfo", json!({ "kms_id": "base" }))["status"], 404);
        let next = sdk.call("nextAppIds", json!({ "counts": 3 }));
        assert_eq!(next["app_ids"].as_array().map(Vec::len), Some(3));

        // The SDK finds the signer that the KMS says it has, and only for this app.
        let key = sdk.call("getAppEnvEncryptPubKey", json!({ "kms": "phala", "app_id": app_id }));
        let bytes = |field: &str| format!("hex:{}", text(&key[field]));
        let signer = |app: &str| {
            let params = json!([bytes("public_key"), bytes("signature"), app]);
            sdk.call("verifyEnvEncryptPublicKey", params)
        };
        let info = cloud.client.get(&format!("/api/v1/kms/{id}/info")).expect("the server answers").json();
        let ours = format!("0x{}", text(&info["rpc"]["bootstrap_info"]["k256_pubkey"]));
        assert_eq!(signer(&app_id), ours.as_str());
        assert_eq!(signer(&format!("0x{app_id}")), ours.as_str());
        assert_ne!(signer(&"0".repeat(40)), ours.as_str());
    }
}

/// A CVM that has a second revision.
fn updated(cloud: &Cloud, name: &str) -> String {
    let cvm = cloud.deployed(name, SOON);
    let update = json!({ "docker_compose_file": COMPOSE.replace("hello", "goodbye") });
    let path = format!("/api/v1/cvms/{cvm}");
    let body = Some(update.to_string().into_bytes());
    let answer = cloud.client.send("PATCH", &path, &[], body).expect("the server answers");
    assert_eq!(answer.status, 202, "{}", answer.text);
    cloud.done(&text(&answer.json()["correlation_id"]), SOON);
    cvm
}

#[test]
fn apps_through_the_sdk() {
    let cloud = Cloud::simulated(1);
    let cvm = updated(&cloud, "changed");
    cloud.deployed("other", SOON);
    let app_id = app_id(&cloud, &cvm);
    for version in VERSIONS {
        let sdk = Sdk::new(&cloud, version);
        let list = sdk.call("getAppList", json!({ "page": 1, "page_size": 50 }));
        assert_eq!(list["total"], 2);
        let filters = json!({ "search": "chan", "status": ["running", "stopped"], "listed": false, "kms_type": "phala",
            "kms_slug": "holdfast" });
        assert_eq!(sdk.call("getAppList", filters)["dstack_apps"][0]["app_id"], app_id.as_str());
        assert_eq!(sdk.call("getAppList", json!({ "status": ["stopped"] }))["total"], 0);
        let options = sdk.call("getAppFilterOptions", json!({}));
        assert_eq!(options["statuses"], json!(["running"]));
        let by_options = json!({ "base_image": options["image_versions"][0], "node": options["nodes"][0] });
        assert_eq!(sdk.call("getAppList", by_options)["total"], 2);
        let app = sdk.call("getAppInfo", json!({ "appId": app_id }));
        assert_eq!((&app["name"], &app["cvm_count"]), (&json!("changed"), &json!(1)));
        assert_eq!(sdk.call("getAppCvms", json!({ "appId": app_id })).as_array().map(Vec::len), Some(1));
        assert_eq!(sdk.try_call("getAppInfo", json!({ "appId": "0".repeat(40) }))["status"], 404);
        let devices = sdk.call("getAppDeviceAllowlist", json!({ "appId": app_id }));
        assert_eq!((&devices["is_onchain_kms"], &devices["devices"]), (&json!(false), &json!([])));

        let revisions = sdk.call("getAppRevisions", json!({ "appId": app_id, "page": 1, "page_size": 1000 }));
        assert_eq!(revisions["total"], 2);
        let id = &revisions["revisions"][1]["revision_id"];
        let detail = |raw: bool| {
            sdk.call("getAppRevisionDetail", json!({ "appId": app_id, "revisionId": id, "rawComposeFile": raw }))
        };
        assert_eq!(detail(false)["compose_file"]["docker_compose_file"], COMPOSE);
        assert!(detail(true)["compose_file"].is_string());
    }
}

#[test]
fn apps_on_the_command_line() {
    let cloud = Cloud::simulated(1);
    let cvm = updated(&cloud, "shown-app");
    cloud.deployed("other-app", SOON);
    let app_id = app_id(&cloud, &cvm);
    let phala = Phala::new(&cloud);
    for command in [["apps"].as_slice(), &["cvms", "list"]] {
        let shown = phala.run(command);
        assert!(shown.contains("shown-app") && shown.contains("other-app"), "{shown}");
        let found = phala.run(&[command, &["--search", "shown", "--status", "running", "--no-listed"]].concat());
        assert!(found.contains("shown-app") && !found.contains("other-app"), "{found}");
        let listed = phala.json(&[command, &["--json"]].concat()).to_string();
        assert!(listed.contains(&app_id), "{listed}");
    }
    let instances = phala.run(&["instances", "ls", "--app-id", &app_id]);
    assert!(instances.contains("shown-app") && instances.contains("running"), "{instances}");
    let instances = phala.json(&["instances", "ls", "--app-id", &format!("app_{app_id}"), "--json"]).to_string();
    assert!(instances.replace('-', "").contains(&cvm.replace('-', "")), "{instances}");
    let devices = phala.json(&["cvms", "device-allowlist", "shown-app", "--json"]);
    assert!(devices.to_string().contains("\"is_onchain_kms\":false"), "{devices}");
    phala.run(&["cvms", "device-allowlist", "shown-app"]);
    phala.run(&["kms", "list"]);
    phala.run(&["kms", "list", "--json"]);
    phala.run(&["link", &app_id]);

    // What no command shows.
    let api = |path: &str| phala.json(&["api", path]);
    let usage = api(&format!("/apps/{app_id}/usage"));
    let kinds: Vec<_> =
        usage["usage"].as_array().expect("entries").iter().map(|row| row["usage_type"].clone()).collect();
    assert!(kinds.contains(&json!("compute")) && kinds.contains(&json!("disk")), "{usage}");
    let events = api(&format!("/apps/{app_id}/events"));
    assert_eq!(events["events"][0]["event_type"], "instance.compose_update.end");

    // Back to what was deployed first.
    let hash = || api(&format!("/cvms/{cvm}"))["compose_hash"].clone();
    let revisions = api(&format!("/apps/{app_id}/revisions"));
    let first: &Value = &revisions["revisions"][1];
    assert_ne!(hash(), first["compose_hash"]);
    let path = format!("/apps/{app_id}/revisions/{}/redeploy", text(&first["revision_id"]));
    let answer = phala.json(&["api", &path, "-X", "POST"]);
    cloud.done(&text(&answer["correlation_id"]), SOON);
    assert_eq!(hash(), first["compose_hash"]);
    let newest = operation::newest(&cloud.client, &cvm).expect("an operation");
    assert_eq!(newest["operation_type"], "compose_update");
}
