//! What strangers send, one function for each kind of it: guests their frames, clients their compose files, encrypted
//! values, ids, cursors and version headers.
//!
//! The one rule: a function panics when the product does what it never may, and for nothing else. The fuzzer calls it with
//! bytes of its own; `crates/holdfast/tests/fuzz.rs` calls it with the corpus and some of its neighbours.

mod surface;

use std::time::Duration;

use holdfast_model::compose::{AppCompose, canonical_json, normalize, published_ports};
use holdfast_model::hashid::{self, Prefix};
use holdfast_trust::env;
use serde_json::{Map, Value};

/// What a target does with its input: it panics when a promise is broken.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("guest_frames", guest_frames),
    ("compose_files", compose_files),
    ("env_blobs", env_blobs),
    ("ids", ids),
    ("cursors", cursors),
    ("version_headers", version_headers),
];

/// A guest says these bytes to its node: no more is kept of it than fits, and its log stays within its credit.
pub fn guest_frames(data: &[u8]) {
    let hear = holdfast_node::hypervisor::qemu::fuzz::hear(data);
    let heard = surface::RUNTIME.block_on(async { tokio::time::timeout(Duration::from_secs(10), hear).await });
    heard.expect("the node goes on").expect("sockets and folders work");
}

/// A compose file, or the whole of app-compose.json when it is JSON: what is accepted can be read by the guest, and making
/// it again gives the same bytes.
pub fn compose_files(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(ports) = published_ports(text) {
        assert!(ports.is_sorted_by_key(|port| port.vm_port), "{ports:?}");
        assert!(ports.windows(2).all(|two| two[0].vm_port != two[1].vm_port), "{ports:?}");
        assert!(ports.iter().all(|port| port.vm_port > 0 && port.target > 0), "{ports:?}");
    }
    let mut sent = Map::new();
    sent.insert("docker_compose_file".to_owned(), Value::from(text));
    made(&sent);
    if let Ok(sent) = serde_json::from_str::<Map<String, Value>>(text) {
        made(&sent);
    }
}

fn made(sent: &Map<String, Value>) {
    let Ok(bytes) = normalize(sent, "fuzz") else { return };
    let parsed = AppCompose::parse(&bytes).unwrap_or_else(|e| panic!("{e}: {bytes}"));
    parsed.published().unwrap_or_else(|e| panic!("{e}: {bytes}"));
    let value: Value = serde_json::from_str(&bytes).expect("what was made is JSON");
    assert_eq!(canonical_json(&value), bytes);
    let map = value.as_object().expect("an object");
    assert_eq!(normalize(map, "other").expect("it was accepted before"), bytes);
}

/// Bytes that a client claims to have encrypted: refused unless they were made for the key; and any names and values come
/// out as they went in, unless a bit was changed on the way.
pub fn env_blobs(data: &[u8]) {
    let key = holdfast_trust::kms::Root::from_seed(&[5; 32]).env_key(&[6; 20]);
    assert!(env::decrypt(&key.secret, data).is_err(), "nobody encrypted this");
    let words: Vec<String> = data.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let pairs: Vec<(String, String)> =
        words.chunks(2).map(|two| (two[0].clone(), two.get(1).cloned().unwrap_or_default())).collect();
    let Ok(mut blob) = env::encrypt(&key.public, &pairs) else { return };
    assert!(blob.len() <= env::MAX_BLOB);
    assert_eq!(env::decrypt(&key.secret, &blob).as_ref(), Ok(&pairs));
    let place = data.iter().fold(data.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let at = place % blob.len();
    blob[at] ^= 1 << (place / 7 % 8);
    // The curve leaves the highest bit of a public key out: with it or without, it is the same key.
    if at != 31 || place / 7 % 8 != 7 {
        assert_eq!(env::decrypt(&key.secret, &blob), Err(env::EnvError::NotForThisKey), "byte {at}");
    }
}

/// Text where an id belongs: found or not, never a fault; and a hashid has one spelling.
pub fn ids(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        for prefix in [Prefix::Cvm, Prefix::App, Prefix::Workspace, Prefix::User, Prefix::Kms, Prefix::NodeToken] {
            if let Some(key) = hashid::decode(prefix, text) {
                assert!(key >= 0 && hashid::encode(prefix, key) == text, "{text} is {key}");
            }
        }
    }
    let id = surface::in_path(data);
    for path in [
        format!("/api/v1/cvms/{id}"),
        format!("/api/v1/cvms/{id}/operations"),
        format!("/api/v1/apps/{id}"),
        format!("/api/v1/apps/{id}/revisions/{id}"),
        format!("/api/v1/kms/phala/pubkey/{id}"),
        format!("/api/v1/workspaces/{id}"),
        format!("/v1/operations/{id}"),
        format!("/holdfast/v1/operations/{id}"),
        format!("/holdfast/v1/audit-logs/{id}"),
    ] {
        let (status, _) = surface::get(&path, None);
        assert!([200, 400, 404, 405, 409, 422].contains(&status), "{path}: {status}");
    }
}

/// Text where a cursor belongs, and a cursor of ours with these bytes laid over it: one that was changed is refused.
pub fn cursors(data: &[u8]) {
    let genuine = surface::cursor();
    for route in ["/api/v1/workspaces", "/holdfast/v1/audit-logs", "/holdfast/v1/operations", "/v1/operations"] {
        let (status, _) = surface::get(&format!("{route}?limit=1&cursor={}", surface::in_path(data)), None);
        assert!(status == 400 || status == 422 || status == 200, "{route}: {status}");
        let is_ours = data.is_empty() || data == genuine.as_bytes();
        assert!(status != 200 || is_ours || route.ends_with("workspaces"), "{route} took a cursor that nobody made");
    }
    let mut changed = genuine.clone().into_bytes();
    for (at, byte) in data.iter().enumerate() {
        let length = changed.len();
        changed[at % length] ^= byte & 0x7f;
    }
    let path = format!("/holdfast/v1/audit-logs?limit=1&cursor={}", surface::in_path(&changed));
    let (status, _) = surface::get(&path, None);
    let expected = if changed == genuine.as_bytes() { 200 } else { 400 };
    assert_eq!(status, expected, "{}", String::from_utf8_lossy(&changed));
}

/// Bytes as the version header: understood or refused.
pub fn version_headers(data: &[u8]) {
    let Ok(value) = axum::http::HeaderValue::from_bytes(data) else { return };
    let (status, body) = surface::get("/api/v1/auth/me", Some(value));
    match status {
        200 => assert!(body["user"].is_object() || body["username"].is_string(), "{body}"),
        422 => assert!(body["detail"][0]["loc"][0] == "header", "{body}"),
        other => panic!("{other}: {body}"),
    }
}
