//! SSH keys: added, refused, imported, synced, and put into new CVMs. That they are nobody else's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::github::Profile;
use crate::support::{Server, V2026, provision};

const KEYS: &str = "/user/ssh-keys";

/// A well-formed ed25519 key; each number another one.
pub fn key(number: u8) -> String {
    let blob = [&b"\0\0\0\x0bssh-ed25519\0\0\0\x20"[..], &[number; 32]].concat();
    format!("ssh-ed25519 {} me@laptop", STANDARD.encode(blob))
}

async fn add(server: &Server, name: &str, number: u8) -> Value {
    server.at(V2026).post(KEYS, &json!({ "name": name, "public_key": key(number) })).await.expect(201)
}

async fn names(server: &Server) -> Vec<String> {
    let list = server.at(V2026).get(KEYS).await.expect(200);
    list.as_array().expect("a list").iter().map(|k| k["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn added_listed_and_deleted() {
    let server = Server::start().await;
    assert_eq!(server.at(V2026).get(KEYS).await.expect(200), json!([]));
    let made = add(&server, "laptop", 1).await;
    let me = server.at(V2026).get("/auth/me").await.expect(200);
    assert!(made["id"].as_str().expect("an id").starts_with("sshkey_"), "{made}");
    assert_eq!((&made["user_id"], &made["source"]), (&me["user"]["id"], &json!("manual")));
    assert_eq!((&made["public_key"], &made["key_type"]), (&json!(key(1)), &json!("ssh-ed25519")));
    assert!(made["fingerprint"].as_str().expect("a fingerprint").starts_with("SHA256:"));
    assert_eq!((&made["key_metadata"], &made["last_synced_at"]), (&Value::Null, &Value::Null));
    assert_eq!(server.at(V2026).get(KEYS).await.expect(200), json!([made]));

    // The same key under another name and with another comment is the same key.
    let again = json!({ "name": "other", "public_key": key(1).replace("me@laptop", "somebody") });
    let refused = server.at(V2026).post(KEYS, &again).await.expect(400);
    assert_eq!(refused["error_code"], "HF-0152");
    assert!(refused["message"].as_str().expect("a text").contains("laptop"), "{refused}");

    let path = format!("{KEYS}/{}", made["id"].as_str().expect("an id"));
    let (key, path_of_all) = (("idempotency-key", "d1"), format!("/api/v1{path}"));
    for _ in 0..2 {
        assert_eq!(server.at(V2026).any("DELETE", &path_of_all, key).await.status, 204);
    }
    assert_eq!(server.at(V2026).delete(&path).await.expect(404)["error_code"], "HF-0150");
    let tables = server.tables().await;
    assert_eq!(tables.matches("ssh_key.create").count(), 1);
    assert_eq!(tables.matches("ssh_key.delete").count(), 1);
}

#[tokio::test]
async fn one_key_however_often_it_is_sent_at_once() {
    let server = Server::start().await;
    let body = json!({ "name": "laptop", "public_key": key(1) });
    let ask = || async { server.at(V2026).post(KEYS, &body).await.status.as_u16() };
    let mut answers = futures_util::future::join_all((0..20).map(|_| ask())).await;
    answers.sort_unstable();
    assert_eq!((answers[0], &answers[1..]), (201, &[400; 19][..]));
    assert_eq!(names(&server).await.len(), 1);
}

#[tokio::test]
async fn what_is_no_public_key_is_refused_and_repeated_nowhere() {
    let server = Server::start().await;
    let secret = "b3BlbnNzaC1rZXktdjEAAAAA";
    let private = format!("-----BEGIN OPENSSH PRIV{}\n{secret}\n-----END OPENSSH PRIV{0}\n", "ATE KEY-----");
    for (text, why) in [
        (private.as_str(), "private key"),
        (&format!("command=\"{secret}\" {}", key(1)), "options"),
        (&format!("{}\n{}", key(1), key(2)), "several lines"),
        (&format!("ssh-ed25519 {secret}"), "cut off"),
        ("", "empty"),
    ] {
        let answer = server.at(V2026).post(KEYS, &json!({ "name": "laptop", "public_key": text })).await;
        let text = answer.text();
        let body = answer.expect(422);
        assert_eq!(body["detail"][0]["loc"], json!(["body", "public_key"]));
        assert!(body["detail"][0]["msg"].as_str().expect("a text").contains(why) && !text.contains(secret), "{text}");
    }
    for name in ["", "  ", "a\nb", &"é".repeat(101)] {
        let body = json!({ "name": name, "public_key": key(1) });
        assert_eq!(server.at(V2026).post(KEYS, &body).await.expect(422)["detail"][0]["loc"], json!(["body", "name"]));
    }
    assert!(!server.tables().await.contains(secret));
    assert_eq!(names(&server).await, Vec::<String>::new());
}

#[tokio::test]
async fn keys_are_their_users_alone() {
    let server = Server::start().await;
    let mine = add(&server, "laptop", 1).await;
    let stranger = server.stranger("user").await;
    server.sql("UPDATE workspace_member SET role = 'reader' WHERE user_id = 2").await;
    let them = server.with_key(&stranger);
    assert_eq!(them.get(KEYS).await.expect(200), json!([]));
    let path = format!("{KEYS}/{}", mine["id"].as_str().expect("an id"));
    let foreign = them.delete(&path).await.expect(404);
    assert_eq!(foreign, them.delete(&format!("{KEYS}/sshkey_none")).await.expect(404));
    // A key may be two people's, and a reader manages their own.
    let theirs = them.post(KEYS, &json!({ "name": "shared", "public_key": key(1) })).await.expect(201);
    assert_ne!(theirs["id"], mine["id"]);
    assert_eq!(names(&server).await, ["laptop"]);
}

#[tokio::test]
async fn there_is_a_most() {
    let server = Server::start().await;
    for number in 0..100 {
        add(&server, "one of many", number).await;
    }
    let refused = server.at(V2026).post(KEYS, &json!({ "name": "too many", "public_key": key(100) })).await.expect(400);
    assert_eq!(refused["error_code"], "HF-0153");
    // Those that are there are skipped; only the new one is told of.
    server.github.has("octocat", &format!("{}\n{}\n", key(7), key(100)));
    let (path, body) = (format!("{KEYS}/github-profile"), json!({ "github_username": "octocat" }));
    let imported = server.at(V2026).post(&path, &body).await.expect(200);
    assert_eq!((&imported["keys_added"], &imported["keys_skipped"]), (&json!(0), &json!(1)), "{imported}");
    assert_eq!(imported["errors"].as_array().expect("errors").len(), 1);
}

#[tokio::test]
async fn new_cvms_have_the_keys_of_whoever_makes_them() {
    let server = Server::start().await;
    add(&server, "laptop", 1).await;
    server.deploy_running("plain-app").await;
    let told = async |name: &str| {
        let config = server.at(V2026).get(&format!("/cvms/{name}/user_config")).await.expect(200);
        config["ssh_authorized_keys"].as_array().expect("a list").clone()
    };
    assert_eq!(told("plain-app").await, [json!(key(1))]);

    let deploy = async |name: &str, text: &str| {
        let mut wanted = provision(name);
        wanted["user_config"] = text.into();
        let provisioned = server.at(V2026).post("/cvms/provision", &wanted).await.expect(200);
        let commit = json!({ "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"] });
        server.at(V2026).post("/cvms", &commit).await.expect(200);
    };
    deploy("own-app", &json!({ "hostname": "db", "ssh_authorized_keys": [key(2), key(1)] }).to_string()).await;
    assert_eq!(told("own-app").await, [json!(key(2)), json!(key(1))]);
    deploy("words-app", "words of the app's own").await;
    assert_eq!(told("words-app").await, Vec::<Value>::new());

    // What is there keeps its keys; a replica is as the other CVM is, with the keys of whoever asks for it.
    let all = server.at(V2026).get(KEYS).await.expect(200);
    server.at(V2026).delete(&format!("{KEYS}/{}", all[0]["id"].as_str().expect("an id"))).await;
    add(&server, "new laptop", 3).await;
    assert_eq!(told("plain-app").await, [json!(key(1))]);
    let replica = server.at(V2026).post("/cvms/plain-app/replicas", &json!({})).await.expect(200);
    let uuid = replica["vm_uuid"].as_str().expect("a UUID");
    assert_eq!(told(uuid).await, [json!(key(1)), json!(key(3))]);
}

#[tokio::test]
async fn a_profile_is_imported_and_kept_in_step() {
    let server = Server::start().await;
    let (import, sync) = (format!("{KEYS}/github-profile"), format!("{KEYS}/github-sync"));
    let octocat = json!({ "github_username": "octocat" });
    // Nothing to bring in step.
    let idle = server.at(V2026).post(&sync, &json!({})).await.expect(200);
    assert_eq!((&idle["synced_count"], &idle["errors"]), (&json!(0), &json!([])), "{idle}");

    add(&server, "by hand", 1).await;
    server.github.has("octocat", &format!("{}\n{}\n\n{}\nssh-dss AAAA\n", key(1), key(2), key(2)));
    let imported = server.at(V2026).post(&import, &octocat).await.expect(200);
    let counts = |answer: &Value, names: &[&str]| names.iter().map(|n| answer[*n].as_i64()).collect::<Vec<_>>();
    assert_eq!(counts(&imported, &["keys_added", "keys_skipped"]), [Some(1), Some(1)], "{imported}");
    assert_eq!(
        imported["errors"],
        json!(["octocat, line 4: it is a DSA key, which OpenSSH does not accept any more."])
    );
    let list = server.at(V2026).get(KEYS).await.expect(200);
    assert_eq!(
        (&list[1]["source"], &list[1]["key_metadata"]),
        (&json!("github"), &json!({ "github_username": "octocat" }))
    );
    assert!(list[1]["last_synced_at"].is_string(), "{list}");
    let again = server.at(V2026).post(&import, &octocat).await.expect(200);
    assert_eq!(counts(&again, &["keys_added", "keys_skipped"]), [Some(0), Some(2)], "{again}");

    // Another profile takes a key over while both change.
    server.github.has("hubot", &key(4));
    server.at(V2026).post(&import, &json!({ "github_username": "hubot" })).await.expect(200);
    server.github.has("octocat", &format!("{}\n{}\n", key(3), key(4)));
    server.github.has("hubot", &key(2));
    let of_sync = ["synced_count", "keys_added", "keys_updated", "keys_removed"];
    let synced = server.at(V2026).post(&sync, &json!({})).await.expect(200);
    assert_eq!(counts(&synced, &of_sync), [Some(2), Some(3), Some(0), Some(2)], "{synced}");
    let mut keys: Vec<String> = Vec::new();
    for key in server.at(V2026).get(KEYS).await.expect(200).as_array().expect("a list") {
        keys.push(key["public_key"].as_str().expect("a key").to_owned());
    }
    assert_eq!(keys.len(), 4);
    assert!((1..=4).all(|number| keys.contains(&key(number))), "{keys:?}");

    // One that cannot be asked keeps what it has.
    server.github.is("octocat", Profile::Status(500));
    let synced = server.at(V2026).post(&sync, &json!({})).await.expect(200);
    assert_eq!(counts(&synced, &of_sync), [Some(1), Some(0), Some(1), Some(0)], "{synced}");
    assert_eq!(synced["errors"].as_array().expect("errors").len(), 1);
    // One without keys any more loses them, those added by hand stay, and it is not asked again.
    server.github.has("octocat", "");
    server.github.has("hubot", "");
    assert_eq!(counts(&server.at(V2026).post(&sync, &json!({})).await.expect(200), &of_sync)[3], Some(3));
    assert_eq!(names(&server).await, ["by hand"]);
    assert_eq!(server.at(V2026).post(&sync, &json!({})).await.expect(200)["synced_count"], 0);
    let tables = server.tables().await;
    assert_eq!((tables.matches("ssh_key.import").count(), tables.matches("ssh_key.sync").count()), (3, 5));
}

#[tokio::test]
async fn a_network_that_fails_is_told_from_a_profile_that_is_not_there() {
    let server = Server::start().await;
    let ask = async |name: &str| {
        let body = json!({ "github_username": name });
        server.at(V2026).post(&format!("{KEYS}/github-profile"), &body).await.expect(400)
    };
    assert_eq!(ask("nobody").await["error_code"], "HF-0155");
    let elsewhere = crate::github::Github::start().await;
    elsewhere.has("moved", &key(1));
    for (profile, why) in [
        (Profile::Status(503), "answers 503"),
        (Profile::Redirect(format!("{}/moved.keys", elsewhere.url)), "another host"),
        (Profile::Redirect("/loop.keys".to_owned()), "another host"),
        (Profile::Endless, "longer than"),
        (Profile::NoText, "not text"),
        (Profile::Silence, "in time"),
    ] {
        server.github.is("loop", profile.clone());
        let refused = ask("loop").await;
        assert_eq!(refused["error_code"], "HF-0154", "{profile:?}");
        assert!(refused["message"].as_str().expect("a text").contains(why), "{profile:?}: {refused}");
    }
    // On the same host it goes on.
    server.github.has("renamed", &key(1));
    server.github.is("old-name", Profile::Redirect("/renamed.keys".to_owned()));
    let body = json!({ "github_username": "old-name" });
    assert_eq!(server.at(V2026).post(&format!("{KEYS}/github-profile"), &body).await.expect(200)["keys_added"], 1);
}
