//! The KMS in every version: its shapes, the names it goes by, the keys it hands out, and the app ids it predicts.

use serde_json::{Value, json};

use crate::shapes::check;
use crate::support::{NEWEST, Server, V_STRING_IDS, V2025, V2026, provision};

const INFO: &str =
    "id:kms_ slug:text url:https:// version:text chain_id:null kms_contract_address:null gateway_app_id:null";
const CONTRACT: &str = "id:kc_ slug:text label:text contract_address:phala chain_id:int k256_pubkey:text ca_pubkey:text
    node_count:int";

/// What each version calls a KMS; `""` sends no version, which is the key's: the oldest.
const VERSIONS: [(&str, &str); 7] = [
    ("", INFO),
    (V2025, INFO),
    (V2026, INFO),
    (V_STRING_IDS, INFO),
    (NEWEST, CONTRACT),
    ("LATEST", CONTRACT),
    ("2031-01-01", CONTRACT),
];

#[tokio::test]
async fn lists_and_details() {
    let server = Server::start().await;
    for (version, shape) in VERSIONS {
        let ask = if version.is_empty() { server.with_key(&server.key) } else { server.at(version) };
        let page = ask.get("/kms").await.expect(200);
        check(&page, true, "items:list total:int page:int page_size:int pages:int");
        assert_eq!((&page["total"], &page["page_size"], &page["pages"]), (&json!(1), &json!(20), &json!(1)));
        check(&page["items"][0], true, shape);
        let id = page["items"][0]["id"].as_str().expect("an id").to_owned();
        for name in [id.as_str(), "holdfast", "phala", "PHALA"] {
            let kms = ask.get(&format!("/kms/{name}")).await.expect(200);
            assert_eq!(kms, page["items"][0], "{version} {name}");
            let nodes = ask.get(&format!("/kms/{name}/nodes")).await.expect(200);
            check(&nodes, true, "items:list total:int");
            check(&nodes["items"][0], true, "id:kms_ slug:text url:https:// version:text kms_type:phala");
        }
        // The command line asks for those on a chain only.
        for (query, total) in [("page_size=100&is_onchain=true", 0), ("is_onchain=false", 1), ("page=2", 1)] {
            let page = ask.get(&format!("/kms?{query}")).await.expect(200);
            assert_eq!(page["total"], total, "{version} {query}");
        }
    }
    assert_eq!(server.at(V2026).get("/kms?page=2").await.expect(200)["items"], json!([]));
    for (query, field) in [("page=0", "page"), ("page_size=101", "page_size"), ("is_onchain=perhaps", "is_onchain")] {
        let wrong = server.at(V2026).get(&format!("/kms?{query}")).await.expect(422);
        assert_eq!(wrong["detail"][0]["loc"], json!(["query", field]));
    }
}

#[tokio::test]
async fn a_close_look() {
    let server = Server::start().await;
    let info = server.at(V2026).get("/kms/holdfast/info").await.expect(200);
    check(
        &info,
        true,
        "id:kms_ slug:text endpoint:https:// kms_type:phala db_version:text rpc:object rpc_error:null guest_agent:null
         guest_agent_error:text on_chain:null teepods:list",
    );
    check(
        &info["rpc"],
        true,
        "version:text is_dev:bool bootstrap_info:object chain_id:null kms_contract_address:null gateway_app_id:null
         version_synced:bool",
    );
    check(&info["rpc"]["bootstrap_info"], true, "ca_pubkey:text k256_pubkey:text quote_length:int eventlog_length:int");
    assert_eq!(info["rpc"]["bootstrap_info"]["quote_length"], 0, "nothing vouches for it");
    check(
        &info["teepods"][0],
        true,
        "id:int name:text error:text? kms_url:text? kms_urls:list teepod_version_db:text? teepod_version_real:text?
         available_os_images:list",
    );
    check(&info["teepods"][0]["available_os_images"][0], true, "name:text version:text is_dev:bool");
}

#[tokio::test]
async fn a_kms_that_is_not_there() {
    let server = Server::start().await;
    let app_id = "ab".repeat(20);
    for name in ["ethereum", "base", "kms_aaaaaaaa", "other", "1"] {
        for rest in [String::new(), "/nodes".to_owned(), "/info".to_owned(), format!("/pubkey/{app_id}")] {
            let body = server.at(V2026).get(&format!("/kms/{name}{rest}")).await.expect(404);
            assert_eq!(body["error_code"], "ERR-02-011", "{name}{rest}");
            assert!(body.get("detail").is_none(), "{body}");
        }
    }
}

fn bytes<const N: usize>(hexadecimal: &Value) -> [u8; N] {
    let text = hexadecimal.as_str().expect("text");
    let digits: Vec<u8> =
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal")).collect();
    digits.try_into().expect("as many bytes")
}

#[tokio::test]
async fn env_keys_are_signed_for_their_app_alone() {
    let server = Server::start().await;
    let provisioned = server.at(V2025).post("/cvms/provision", &provision("keyed-app")).await.expect(200);
    let app_id = provisioned["app_id"].as_str().expect("an app id").to_owned();
    let contract = server.at(NEWEST).get("/kms/phala").await.expect(200);
    for (version, _) in VERSIONS.iter().skip(1) {
        for form in [app_id.clone(), format!("0x{app_id}"), app_id.to_uppercase()] {
            let answer = server.at(version).get(&format!("/kms/phala/pubkey/{form}")).await.expect(200);
            check(&answer, true, "public_key:text signature:text");
            assert_eq!(answer["public_key"], provisioned["app_env_encrypt_pubkey"], "{version} {form}");
            let recover = |app: [u8; 20]| {
                let (public, signature) = (bytes(&answer["public_key"]), bytes(&answer["signature"]));
                holdfast_trust::kms::recover_signer(&app, &public, &signature)
            };
            assert_eq!(recover(bytes(&json!(app_id))), Some(bytes(&contract["k256_pubkey"])));
            assert_ne!(recover([0; 20]), Some(bytes(&contract["k256_pubkey"])));
        }
    }
    for wrong in ["12", "zz", &"g".repeat(40), &format!("{app_id}00")] {
        let body = server.at(V2026).get(&format!("/kms/phala/pubkey/{wrong}")).await.expect(400);
        assert_eq!(body["error_code"], "HF-0141", "{wrong}");
    }
    // A stranger learns nothing from asking: existing or not, an id has a key.
    let stranger = server.stranger("user").await;
    for id in [app_id, "ab".repeat(20)] {
        assert_eq!(server.with_key(&stranger).get(&format!("/kms/phala/pubkey/{id}")).await.status, 200);
    }
}

#[tokio::test]
async fn predicted_app_ids_come_true() {
    let server = Server::start().await;
    let next = async |counts: usize| {
        let answer = server.at(V2026).get(&format!("/kms/phala/next_app_id?counts={counts}")).await.expect(200);
        check(&answer, true, "app_ids:list");
        let list = answer["app_ids"].as_array().expect("a list").clone();
        list.iter().for_each(|id| check(id, true, "app_id:text nonce:int"));
        list
    };
    assert_eq!(
        server.at(V2026).get("/kms/phala/next_app_id").await.expect(200)["app_ids"].as_array().map(Vec::len),
        Some(1)
    );
    let predicted = next(20).await;
    assert_eq!(predicted.len(), 20);
    // Asking takes nothing.
    assert_eq!(next(3).await, predicted[..3]);

    // One who names the second app and its nonce gets it; those who name none get the first and then the third.
    let named = |name: &str, id: &Value| {
        let mut body = provision(name);
        (body["app_id"], body["nonce"]) = (id["app_id"].clone(), id["nonce"].clone());
        body
    };
    let second = server.at(V2025).post("/cvms/provision", &named("app-named", &predicted[1])).await.expect(200);
    assert_eq!(second["app_id"], predicted[1]["app_id"]);
    assert_eq!(next(3).await, [&predicted[..1], &predicted[2..4]].concat(), "what is taken is not predicted");
    for (name, at) in [("app-first", 0), ("app-third", 2)] {
        let plain = server.at(V2025).post("/cvms/provision", &provision(name)).await.expect(200);
        assert_eq!(plain["app_id"], predicted[at]["app_id"], "{name}");
    }
    // An id that is not that of its nonce.
    let mut wrong = named("app-wrong", &predicted[5]);
    wrong["nonce"] = predicted[6]["nonce"].clone();
    let refused = server.at(V2025).post("/cvms/provision", &wrong).await.expect(422);
    assert_eq!(refused["detail"][0]["loc"], json!(["body", "app_id"]));
    for counts in ["0", "21", "x"] {
        let refused = server.at(V2026).get(&format!("/kms/phala/next_app_id?counts={counts}")).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["query", "counts"]));
    }
}
