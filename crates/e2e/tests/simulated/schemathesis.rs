//! Requests that schemathesis makes from the documents that the server gives out, those it thinks fit and those it thinks do
//! not.
//!
//! The one rule: no answer is a fault of the server, every status is one that the document names, and nothing in any answer is
//! another workspace's. Requests name what is not there, then what the caller's workspace has, then what another one has. The
//! seed is the same each time, unless `HOLDFAST_FUZZ_SEED` says otherwise.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON, text};
use holdfast_e2e::truth;
use holdfast_harness::client::Client;
use holdfast_harness::operation;
use serde_json::{Value, json};

const SEED: &str = "20260121";
/// Requests of each kind and route; besides one for each border that its schema has.
const EXAMPLES: &str = "12";
const PHALA: &str = "/openapi/phala.json";
const HOLDFAST: &str = "/openapi/holdfast.json";
/// Of the latter what is about people and what they did. Streams do not end.
const PEOPLE: [&str; 4] = [
    "--include-path-regex",
    "^/holdfast/v1/(audit-logs|invitations|operations|quotas|users|workspaces)",
    "--exclude-path-regex",
    "/(export|stream|wait)$",
];
const KEYS: [&str; 2] = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBNQSQsI0KSz5u+CfCIgtq8GJzqlzwUj19vDswM2xGxv",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICsV51GgMUaS33SfQDgarYjBR/DesEuJkRrlff+7hTyY",
];
/// Shorter texts are words that everybody uses.
const TELLING: usize = 8;

fn folder() -> PathBuf {
    holdfast_e2e::root().join("tests/schemathesis")
}

fn program() -> PathBuf {
    let path = folder().join(".venv/bin/schemathesis");
    assert!(path.is_file(), "there is no {}; run `cargo xtask test simulated`, which installs it", path.display());
    path
}

/// Requests from one document.
struct Run<'a> {
    cloud: &'a Cloud,
    key: &'a str,
    document: &'static str,
    /// What parameters of paths are, by name.
    ids: &'a [(&'static str, String)],
    /// File of what no answer may hold, and whether `ids` are of that workspace.
    foreign: Option<(&'a Path, bool)>,
}

impl Run<'_> {
    fn run(&self, options: &[&str]) {
        let folder = self.cloud.folder.path();
        // What waits for something is told not to wait.
        let mut words =
            "[parameters]\n\"query.follow\" = false\n\"query.timeout\" = 1\n\"query.interval\" = 1\n".to_owned();
        for (name, id) in self.ids {
            words.push_str(&format!("\"path.{name}\" = \"{id}\"\n"));
        }
        let file = folder.join("schemathesis.toml");
        std::fs::write(&file, words).expect("written");
        let key = format!("X-API-Key: {}", self.key);
        let seed = std::env::var("HOLDFAST_FUZZ_SEED").unwrap_or_else(|_| SEED.to_owned());
        let mut checks = "not_a_server_error,status_code_conformance".to_owned();
        let mut command = Command::new(program());
        if let Some((file, all)) = self.foreign {
            checks.push_str(",nothing_foreign");
            command.env("SCHEMATHESIS_HOOKS", self::folder().join("foreign.py")).env("HOLDFAST_FOREIGN", file);
            command.env("HOLDFAST_ALL_FOREIGN", if all { "1" } else { "0" });
        }
        command.arg("--config-file").arg(&file).args(["--no-color", "run"]);
        command.arg(format!("{}{}", self.cloud.client.base, self.document));
        command.args(["--header", &key, "--seed", &seed, "--max-examples", EXAMPLES]);
        command.args(["--checks", &checks, "--warnings", "off"]);
        command.args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink"]);
        // Nothing of it outlives the test.
        command.args(["--generation-database", "none", "--request-timeout", "20"]).args(options);
        let output = command.current_dir(folder).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let tested = said.lines().any(|line| line.trim().starts_with("Test cases:"));
        assert!(output.status.success() && tested, "{}", said.chars().take(20_000).collect::<String>());
    }
}

/// A workspace with one of everything.
struct Workspace {
    client: Client,
    /// Of paths, by the names of their parameters.
    ids: Vec<(&'static str, String)>,
    /// Every text that its members are shown.
    known: BTreeSet<String>,
}

fn settle(cloud: &Cloud, name: &str, ssh_key: &str) -> Workspace {
    let ask = |client: &Client, method: &str, path: &str, body: Value| {
        let headers = [("Content-Type", "application/json")];
        let body = (!body.is_null()).then(|| body.to_string().into_bytes());
        let answer = client.send(method, path, &headers, body).expect("it answers");
        answer.ok().unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    };
    let guest = format!("{name}-guest");
    for (path, body) in [
        ("users", json!({ "username": name, "email": format!("{name}@example.com") })),
        ("workspaces", json!({ "slug": name, "owner": name, "name": format!("Those of {name}") })),
        ("users", json!({ "username": guest, "email": format!("{guest}@example.com"), "workspace": name })),
    ] {
        ask(&cloud.client, "POST", &format!("/holdfast/v1/{path}"), body);
    }
    let mut make = Command::new(holdfast_e2e::binary());
    make.args(["admin", "tokens", "create", "--user", name, "--workspace", name, "--name", &format!("{name}-key")]);
    let made = make.arg("--data-dir").arg(cloud.data_dir()).output().expect("the command runs");
    let client = Client::new(cloud.server.url(), String::from_utf8_lossy(&made.stdout).trim());
    let cvm = client.deploy(&format!("{name}-app"), COMPOSE, &json!({})).expect("a CVM");
    let created = operation::settle(&client, &cvm, SOON).expect("it runs");

    let mut told = vec![created.clone()];
    let mut of = |method: &str, path: &str, body: Value| {
        told.push(ask(&client, method, path, body));
        told[told.len() - 1].clone()
    };
    let members = format!("/api/v1/workspaces/{name}");
    let token = of("POST", "/api/v1/tokens", json!({ "name": format!("{name}-token") }));
    let url = format!("https://{name}.invalid/hook");
    let hook = json!({ "url": url, "name": format!("{name}-hook"), "events": ["cvm.stopped"] });
    let hook = text(&of("POST", "/api/v1/workspace/webhooks", hook)["id"]);
    let event = of("POST", &format!("/api/v1/workspace/webhooks/{hook}/test"), Value::Null);
    let key = json!({ "name": format!("{name}-laptop"), "public_key": format!("{ssh_key} {name}") });
    let key = of("POST", "/api/v1/user/ssh-keys", key);
    let invite = json!({ "email": format!("new@{name}.example"), "role": "reader" });
    let invitation = of("POST", &format!("{members}/invitations"), invite);
    of("POST", &format!("{members}/invitations/shareable"), json!({ "role": "reader" }));
    let app = text(&of("GET", &format!("/api/v1/cvms/{cvm}"), Value::Null)["app_id"]);
    let revisions = of("GET", &format!("/api/v1/apps/{app}/revisions"), Value::Null);
    let members = of("GET", &format!("{members}/members"), Value::Null);
    for path in [
        "/api/v1/auth/me".to_owned(),
        "/api/v1/cvms/paginated".to_owned(),
        format!("/api/v1/cvms/{cvm}/composition"),
        format!("/api/v1/cvms/{cvm}/network"),
        format!("/api/v1/cvms/{cvm}/operations"),
        format!("/api/v1/apps/{app}"),
        "/api/v1/tokens".to_owned(),
        "/api/v1/workspaces".to_owned(),
        format!("/api/v1/workspaces/{name}/invitations"),
        format!("/api/v1/workspace/webhooks/{hook}/deliveries"),
        "/holdfast/v1/operations".to_owned(),
        "/holdfast/v1/audit-logs".to_owned(),
    ] {
        of("GET", &path, Value::Null);
    }
    let mut known = BTreeSet::new();
    told.iter().for_each(|answer| texts(answer, &mut known));
    let guest = members.to_string();
    let guest = known.iter().filter(|text| text.starts_with("usr_")).find(|id| guest.contains(id.as_str()));
    let ids = vec![
        ("cvm_id", cvm.clone()),
        ("vm_uuid", cvm),
        ("app_id", app),
        ("revision_id", text(&revisions["revisions"][0]["revision_id"])),
        ("kms_id", "phala".to_owned()),
        ("family", "cpu".to_owned()),
        ("team_slug", name.to_owned()),
        ("workspace_slug", name.to_owned()),
        ("workspace", name.to_owned()),
        ("token_id", token["id"].to_string()),
        ("webhook_id", hook),
        ("event_id", text(&event["event_id"])),
        ("key_id", text(&key["id"])),
        ("invitation_id", invitation["id"].to_string()),
        ("user_id", guest.unwrap_or_else(|| panic!("{members}")).clone()),
        ("user", name.to_owned()),
        ("id", text(&created["id"])),
    ];
    Workspace { client, ids, known }
}

/// Texts that are long enough to be somebody's, and are no times.
fn texts(value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.values().for_each(|value| texts(value, all)),
        Value::Array(array) => array.iter().for_each(|value| texts(value, all)),
        Value::String(text) if text.len() >= TELLING && !text.ends_with('Z') => drop(all.insert(text.clone())),
        _ => {}
    }
}

#[test]
fn what_is_not_there() {
    let mut cloud = Cloud::simulated(1);
    for (document, options) in [(PHALA, &[][..]), (HOLDFAST, &PEOPLE)] {
        Run { cloud: &cloud, key: &cloud.client.key, document, ids: &[], foreign: None }.run(options);
    }
    assert!(cloud.server.is_running().expect("asked"), "{}", cloud.server.log_end(40));
    truth::assert_consistent(&cloud);
}

#[test]
fn what_is_there_and_what_is_somebody_elses() {
    let mut cloud = Cloud::simulated(1);
    let (ours, theirs) = (settle(&cloud, "ours", KEYS[0]), settle(&cloud, "zzyzx-team", KEYS[1]));
    let foreign: BTreeSet<_> = theirs.known.difference(&ours.known).collect();
    for name in ["zzyzx-team-app", "zzyzx-team-hook", "zzyzx-team-guest@example.com", "new@zzyzx-team.example"] {
        assert!(foreign.contains(&name.to_owned()), "{name} is nowhere: {foreign:?}");
    }
    let file = cloud.folder.path().join("foreign.json");
    std::fs::write(&file, json!(foreign).to_string()).expect("written");
    let run = |document, of: &Workspace, options: &[&str]| {
        let foreign = Some((file.as_path(), std::ptr::eq(of, &raw const theirs)));
        Run { cloud: &cloud, key: &ours.client.key, document, ids: &of.ids, foreign }.run(options);
    };
    let keep = ["--exclude-method", "DELETE"];
    run(PHALA, &ours, &[&keep[..], &["--header", "X-Phala-Version: LATEST"]].concat());
    run(HOLDFAST, &ours, &[&keep[..], &PEOPLE].concat());
    // Only what names something of theirs; that nothing of it happens is seen at the end.
    let theirs_only = ["--include-path-regex", r"\{", "--phases", "examples,coverage"];
    run(PHALA, &theirs, &theirs_only);
    run(HOLDFAST, &theirs, &[&PEOPLE[2..], &theirs_only].concat());
    let after = theirs.client.get("/api/v1/cvms/zzyzx-team-app").expect("it answers").ok().expect("it is there");
    assert_eq!((&after["status"], &after["in_progress"]), (&json!("running"), &json!(false)), "{after}");
    let operations = theirs.client.get("/holdfast/v1/operations").expect("it answers").json();
    assert_eq!(operations["items"].as_array().map(Vec::len), Some(1), "{operations}");
    assert!(cloud.server.is_running().expect("asked"), "{}", cloud.server.log_end(40));
    truth::assert_consistent(&cloud);
}
