//! A CVM by each of its names.
//!
//! The one rule: every spelling that a client may send finds the same CVM, and one that fits two finds none.

use holdfast_e2e::cloud::{Cloud, SOON, text};
use serde_json::Value;

#[test]
fn every_form_of_an_id_finds_the_cvm() {
    let cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("forms", SOON);
    cloud.deployed("other", SOON);
    let detail = |id: &str, version: &str| -> Value {
        let answer = cloud.client.send("GET", &format!("/api/v1/cvms/{id}"), &[("X-Phala-Version", version)], None);
        let answer = answer.expect("the server answers");
        assert_eq!(answer.status, 200, "{id}: {}", answer.text);
        answer.json()
    };
    let old = detail(&cvm, "2025-10-28");
    let new = detail(&cvm, "2026-01-21");
    let bare = cvm.replace('-', "");
    let dashed = format!("{}-{}-{}-{}-{}", &bare[..8], &bare[8..12], &bare[12..16], &bare[16..20], &bare[20..]);
    let app = text(&old["app_id"]).trim_start_matches("app_").to_owned();
    let instance = text(&old["instance_id"]).trim_start_matches("instance_").to_owned();
    let number = old["id"].as_i64().expect("the old schema has an integer id");
    let hashid = text(&new["id"]);
    assert!(hashid.starts_with("cvm_"), "{hashid}");
    assert_eq!((app.len(), instance.len()), (40, 40));
    let forms = [
        bare.clone(),
        dashed.clone(),
        dashed.to_uppercase(),
        format!("app_{app}"),
        app,
        format!("instance_{instance}"),
        instance,
        hashid,
        number.to_string(),
        "forms".to_owned(),
    ];
    for form in forms {
        assert_eq!(detail(&form, "2025-10-28")["vm_uuid"], old["vm_uuid"], "{form}");
    }
    for none in [
        "cvm_aaaaaaaa",
        "app_",
        "instance_00",
        &"0".repeat(32),
        &"0".repeat(40),
        "99999999999999999999",
        "%00",
        "a%2Fb",
    ] {
        let answer = cloud.client.get(&format!("/api/v1/cvms/{none}")).expect("the server answers");
        assert!([400, 404, 422].contains(&answer.status), "{none}: {} {}", answer.status, answer.text);
    }
    // Names live as long as the CVM, uuid and hashid for ever.
    cloud.deleted(&cvm);
    assert_eq!(cloud.status("forms"), "deleted");
    for id in [&bare, &dashed] {
        let answer = cloud.client.get(&format!("/api/v1/cvms/{id}/operations")).expect("the server answers");
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let again = cloud.deployed("forms", SOON);
    assert_ne!(again, cvm);
}
