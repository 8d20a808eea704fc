//! An env value and the key that opens it, looked for in every file of the host.
//!
//! The one rule: the guest is the only place that has either of them in the clear. Its disks count as files of the host.

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{BOOT, Cloud, text};
use holdfast_e2e::leftovers::files_holding;
use holdfast_harness::{operation, process};

#[test]
fn no_file_holds_an_env_value_or_the_key_to_it() {
    let cloud = Cloud::apart(&[]);
    let phala = Phala::new(&cloud);
    let marker = "secret-marker-0f9a61c7";
    let compose = holdfast_e2e::hello_compose();
    let greeting = format!("GREETING={marker}");
    let deployed =
        phala.json(&["deploy", "-c", compose.to_str().expect("a path"), "-n", "secret", "-e", &greeting, "-j"]);
    let cvm = text(&deployed["vm_uuid"]);
    let create = operation::newest(&cloud.client, &cvm).expect("an operation");
    cloud.done(&text(&create["id"]), BOOT);
    assert!(super::cli::answer(&cloud, &cvm).contains(marker), "the guest has it");

    let key = env_key(&cloud, &cvm);
    let hex = hex::encode(key);
    let mut needles =
        vec![marker.as_bytes().to_vec(), key.to_vec(), hex.clone().into_bytes(), hex.to_uppercase().into_bytes()];
    needles.push(hex::encode(marker).into_bytes());
    let folders = [cloud.folder.path().to_owned(), image_folder()];
    assert_eq!(files_holding(&folders, &needles), Vec::<std::path::PathBuf>::new(), "while it runs");
    for vm in process::vms_of(cloud.folder.path()) {
        let line = process::arguments(vm).join(" ");
        assert!(!line.contains(marker) && !line.contains(&hex), "on QEMU's command line");
    }
    let id = cloud.power(&cvm, "stop");
    cloud.done(&id, BOOT);
    assert_eq!(
        files_holding(&folders, &needles),
        Vec::<std::path::PathBuf>::new(),
        "after its disks were written back"
    );
    for view in ["", "/operations", "/composition"] {
        let shown = cloud.client.get(&format!("/api/v1/cvms/{cvm}{view}")).expect("it answers").text;
        assert!(!shown.contains(marker) && !shown.contains(&hex), "{view}");
    }
    cloud.deleted(&cvm);
    assert_eq!(files_holding(&folders, &needles), Vec::<std::path::PathBuf>::new(), "after the CVM was deleted");
}

/// As the node gets it at boot; checked against the public key that clients encrypt to.
fn env_key(cloud: &Cloud, cvm: &str) -> [u8; 32] {
    let token = format!("Bearer {}", cloud.token.as_ref().expect("a node apart has a token"));
    let bare = cvm.replace('-', "");
    let dashed = format!("{}-{}-{}-{}-{}", &bare[..8], &bare[8..12], &bare[12..16], &bare[16..20], &bare[20..]);
    let stranger = holdfast_harness::client::Client::new(cloud.client.base.clone(), "");
    let answer =
        stranger.send("POST", &format!("/node/v1/vms/{dashed}/keys"), &[("Authorization", &token)], Some(Vec::new()));
    let keys = answer.and_then(holdfast_harness::client::Answer::ok).expect("the node may have the keys");
    let key: [u8; 32] = hex::decode(text(&keys["env_key"])).expect("hex").try_into().expect("32 bytes");
    let headers = [("X-Phala-Version", "2025-10-28")];
    let detail = cloud.client.send("GET", &format!("/api/v1/cvms/{cvm}"), &headers, None).expect("it answers").json();
    let public: [u8; 32] =
        hex::decode(text(&detail["encrypted_env_pubkey"])).expect("hex").try_into().expect("32 bytes");
    let probe = holdfast_trust::env::encrypt(&public, &[("A".into(), "1".into())]).expect("encrypted");
    assert!(holdfast_trust::env::decrypt(&key, &probe).is_ok(), "it is the key that clients encrypt to");
    key
}

/// Where images are by default.
fn image_folder() -> std::path::PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let home = || std::path::PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
    cache.unwrap_or_else(home).join("holdfast")
}
