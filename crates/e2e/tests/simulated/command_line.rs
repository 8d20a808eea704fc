//! The official command line, command by command, for people and as JSON: what `updates.rs` and `apps.rs` do not run.
//!
//! The one rule: each command is run in both forms, and what it says it did is looked up at the server.

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{Cloud, SOON, text};
use holdfast_e2e::github;
use holdfast_harness::operation;
use serde_json::{Value, json};

const COMPOSE: &str = "services:\n  web:\n    image: hello:1\n    ports: [\"8080:80\"]\n";

struct Bench {
    cloud: Cloud,
    phala: Phala,
    compose: String,
}

impl Bench {
    fn new() -> Self {
        Self::of(Cloud::simulated(20))
    }

    fn of(cloud: Cloud) -> Self {
        let phala = Phala::new(&cloud);
        let file = cloud.folder.path().join("docker-compose.yml");
        std::fs::write(&file, COMPOSE).expect("a compose file");
        Self { cloud, phala, compose: file.to_str().expect("a path").to_owned() }
    }

    /// Everything that a command told, whatever stream it used; it must succeed.
    fn human(&self, args: &[&str]) -> String {
        let said = self.phala.try_run(args);
        let all = said.out + &said.err;
        assert!(said.ok, "phala {}\n{all}", args.join(" "));
        all
    }

    /// Fails unless the command tells all of it, and is no JSON.
    fn tells(&self, args: &[&str], words: &[&str]) -> String {
        let all = self.human(args);
        for word in words {
            assert!(all.contains(word), "phala {}: no {word} in\n{all}", args.join(" "));
        }
        assert!(!all.trim_start().starts_with('{'), "phala {}\n{all}", args.join(" "));
        all
    }

    /// A command that must fail; all that it told.
    fn refused(&self, args: &[&str]) -> String {
        let said = self.phala.try_run(args);
        assert!(!said.ok, "phala {}\n{}{}", args.join(" "), said.out, said.err);
        said.out + &said.err
    }

    fn json(&self, args: &[&str]) -> Value {
        let value = self.phala.json(args);
        assert_ne!(value["success"], false, "phala {}: {value}", args.join(" "));
        value
    }

    /// The newest operation of the CVM is of this type and ends well.
    fn done(&self, cvm: &str, operation_type: &str) {
        let newest = operation::newest(&self.cloud.client, cvm).expect("an operation");
        assert_eq!(newest["operation_type"], operation_type, "{newest:#}");
        self.cloud.done(&text(&newest["id"]), SOON);
    }

    fn app_id(&self, cvm: &str) -> String {
        text(&self.cloud.client.get(&format!("/api/v1/cvms/{cvm}")).expect("it answers").json()["app_id"])
    }
}

/// Rows 2, 4, 7, 8 and 9 of the matrix of commands.
#[test]
fn a_life_in_words_and_in_json() {
    let bench = Bench::new();
    let deploy = ["deploy", "-c", &bench.compose, "-n", "words-app", "-e", "A=1"];
    bench.tells(&deploy, &["CVM created successfully", "words-app", "App ID"]);
    bench.done("words-app", "create");
    let app = bench.app_id("words-app");
    let other = bench.json(&["deploy", "-c", &bench.compose, "-n", "json-app", "--no-listed", "--json"]);
    bench.done(&text(&other["vm_uuid"]), "create");

    bench.tells(&["cvms", "get", "words-app"], &["words-app", &format!("app_{app}"), "running", "2 GB"]);
    assert_eq!(bench.json(&["cvms", "get", &app, "--json"])["name"], "words-app");
    bench.tells(&["ps", "words-app"], &["NAME", "hello:1", "running"]);
    let containers = bench.json(&["ps", &format!("app_{app}"), "--json"])["containers"].clone();
    assert_eq!((&containers[0]["image"], &containers[0]["state"]), (&json!("hello:1"), &json!("running")));

    // Each verb once in either form; the answer names the status on the way.
    for (name, json) in [("words-app", false), ("json-app", true)] {
        for (verb, on_the_way, operation_type) in
            [("stop", "stopping", "power_off"), ("start", "starting", "power_on"), ("restart", "restarting", "restart")]
        {
            let args = ["cvms", verb, name];
            if json {
                let said = bench.json(&[&args[..], &["--json"]].concat());
                assert_eq!((&said["cvm"]["status"], &said["cvm"]["name"]), (&json!(on_the_way), &json!(name)));
            } else {
                bench.tells(&args, &[name, on_the_way]);
            }
            bench.done(name, operation_type);
        }
    }
    let said = bench.refused(&["cvms", "start", "words-app", "--json"]);
    assert!(said.contains("\"success\": false"), "a refusal is JSON as well: {said}");
    bench.tells(&["cvms", "stop", "words-app"], &["stopping"]);
    bench.done("words-app", "power_off");
    bench.tells(&["ps", "words-app"], &["is stopped"]);
    assert_eq!(bench.json(&["ps", "words-app", "--json"])["containers"], json!([]));
    bench.tells(&["cvms", "get", "words-app"], &["stopped"]);

    let hex = bench.phala.run(&["envs", "encrypt", "json-app", "-e", "A=sealed", "-n"]);
    assert!(hex.len() > 120 && hex.bytes().all(|b| b.is_ascii_hexdigit()), "{hex}");
    bench.tells(&["envs", "update", "json-app", "--encrypted-env", &hex], &["initiated"]);
    bench.done("json-app", "env_update");

    bench.tells(&["cvms", "delete", "words-app", "-y"], &["deleted successfully"]);
    assert_eq!(bench.json(&["cvms", "delete", "json-app", "--force", "--json"])["deleted"], true);
    for name in ["words-app", "json-app"] {
        assert!(bench.refused(&["cvms", "get", name]).contains("not found"));
        let said = bench.refused(&["cvms", "get", name, "--json"]);
        assert!(said.contains("The requested CVM was not found"), "{said}");
    }
}

/// Rows 3, 6, 12, 15 and 16: what only looks.
#[test]
fn looks_in_words_and_in_json() {
    let bench = Bench::new();
    bench.cloud.client.deploy("shown-app", COMPOSE, &json!({})).expect("accepted");
    bench.done("shown-app", "create");
    let app = bench.app_id("shown-app");

    bench.tells(&["cvms", "list-nodes"], &["Available Nodes", "Available KMS"]);
    let nodes = bench.json(&["cvms", "list-nodes", "--json"]);
    assert_eq!(
        (nodes["nodes"].as_array().map(Vec::len), nodes["kmsList"].as_array().map(Vec::len)),
        (Some(1), Some(1))
    );
    bench.tells(&["nodes", "list"], &["VERSION", "0.1.0"]);
    assert_eq!(bench.json(&["nodes", "list", "--json"])["items"][0]["status"], "ONLINE");
    bench.tells(&["instance-types"], &["tdx.small"]);
    bench.tells(&["instance-types", "cpu"], &["tdx.small", "Total"]);
    assert_eq!(bench.json(&["instance-types", "--json"])["result"][0]["name"], "cpu");
    assert_eq!(bench.json(&["instance-types", "cpu", "--json"])["items"][0]["id"], "tdx.small");
    bench.tells(&["os-images"], &["holdfast"]);
    assert_eq!(bench.json(&["os-images", "--prod", "--json"])["items"][0]["is_dev"], false);
    for command in ["whoami", "status"] {
        bench.human(&[command]);
        assert!(bench.json(&[command, "--json"]).to_string().contains("admin"));
    }
    bench.tells(&["runtime-config", "shown-app"], &["Hostname", "SSH Keys"]);
    assert!(bench.json(&["runtime-config", &app, "--json"])["ssh_authorized_keys"].is_array());
    // Without a TEE there is nothing to attest, and it says so.
    bench.tells(&["cvms", "attestation", "shown-app"], &["Attestation Summary", "0 found"]);
    let attested = bench.json(&["cvms", "attestation", &app, "--json"]);
    assert!(attested["error"].is_string() && attested["tcb_info"].is_null(), "{attested}");

    let container = text(&bench.json(&["ps", "shown-app", "--json"])["containers"][0]["names"][0]);
    let container = container.trim_start_matches('/');
    for args in [vec![container], vec!["--serial"], vec!["--cvm-stdout"], vec!["--cvm-stderr"]] {
        let logs = [&["logs"], &args[..], &["--cvm-id", "shown-app"]].concat();
        bench.human(&logs);
        let told = bench.json(&[&logs[..], &["--json"]].concat());
        assert!(told["logs"].is_string(), "{told}");
    }
    bench.tells(&["logs", "--serial", "--cvm-id", "shown-app", "-n", "1"], &["booted"]);

    // A real session needs a gateway; the command line that would open it is made from the app's id.
    let gateway = ["-g", "gw.example.com", "-p", "8443", "--dry-run"];
    let host = format!("root@{app}-22.gw.example.com");
    let ssh = bench.tells(&[&["ssh", &format!("app_{app}")], &gateway[..]].concat(), &["openssl s_client", &host]);
    assert!(ssh.contains("-p 8443"), "{ssh}");
    let remote = format!("app_{app}:/root/x");
    bench.tells(&[&["cp", &bench.compose, &remote], &gateway[..]].concat(), &["scp", &format!("{host}:/root/x")]);
    for args in [vec!["ssh", "shown-app"], vec!["cp", &bench.compose, "shown-app:/root/x"]] {
        let said = bench.refused(&[&args[..], &["--dry-run"]].concat());
        assert!(said.contains("not registered on any gateway"), "{said}");
    }

    // Last, because every command after it is about the linked CVM.
    bench.tells(&["link", "shown-app"], &["Found CVM", "linked successfully"]);
    bench.tells(&["cvms", "get"], &["shown-app", "running"]);
}

/// Row 13: SSH keys from a file and from GitHub, and in the CVMs that are made then.
#[test]
fn ssh_keys_in_words_and_in_json() {
    let github = github::serve(&[github::key(1), github::key(2)]);
    let bench = Bench::of(Cloud::simulated_with("HOLDFAST_GITHUB_URL", &github));
    bench.tells(&["ssh-keys", "list"], &["No SSH keys"]);
    // The command line makes an object of a list: its items by their numbers.
    assert_eq!(bench.json(&["ssh-keys", "list", "--json"]), json!({ "success": true }));

    let file = bench.cloud.folder.path().join("laptop.pub");
    std::fs::write(&file, github::key(1) + "\n").expect("a key file");
    let add = ["ssh-keys", "add", "--name", "my laptop", "--key-file", file.to_str().expect("a path")];
    bench.tells(&add, &["Added SSH key \"my laptop\"", "ssh-ed25519", "SHA256:"]);
    assert!(bench.refused(&add).contains("You have this key already"));
    let list = bench.json(&["ssh-keys", "list", "--json"]);
    let id = text(&list["0"]["id"]);
    bench.tells(&["ssh-keys", "list"], &[&id, "my laptop", "manual"]);

    bench.tells(&["ssh-keys", "import-github", github::PROFILE], &["Added 1 SSH key", "1 skipped"]);
    let again = bench.json(&["ssh-keys", "import-github", github::PROFILE, "--json"]);
    assert_eq!((&again["keys_added"], &again["keys_skipped"]), (&json!(0), &json!(2)), "{again}");
    assert!(bench.refused(&["ssh-keys", "import-github", "nobody-at-all"]).contains("knows no user"));

    bench.tells(&["deploy", "-c", &bench.compose, "-n", "keyed-app"], &["CVM created successfully"]);
    bench.done("keyed-app", "create");
    let config = bench.json(&["runtime-config", "keyed-app", "--json"]);
    assert_eq!(config["ssh_authorized_keys"], json!([github::key(1), github::key(2)]));

    bench.tells(&["ssh-keys", "remove", &id], &[&id, "removed"]);
    assert!(bench.refused(&["ssh-keys", "remove", &id]).contains("no such SSH key"));
    let left = bench.json(&["ssh-keys", "list", "--json"]);
    assert_eq!((left.as_object().map(serde_json::Map::len), &left["0"]["source"]), (Some(2), &json!("github")));
    // What is there has the keys of its making.
    let config = bench.json(&["runtime-config", "keyed-app", "--json"]);
    assert_eq!(config["ssh_authorized_keys"].as_array().map(Vec::len), Some(2));
}

/// Row 14, and the rest of `instances`: more CVMs of one app, and fewer.
#[test]
fn copies_in_words_and_in_json() {
    let bench = Bench::new();
    let first = bench.cloud.client.deploy("model-app", COMPOSE, &json!({})).expect("accepted");
    bench.done(&first, "create");
    let app = bench.app_id(&first);
    let node = text(&bench.json(&["nodes", "list", "--json"])["items"][0]["name"]);

    let mut made = vec![first.clone()];
    // A copy is asked for by a CVM's name, and on a node that is called by its name.
    bench.tells(&["cvms", "replicate", "model-app"], &["CVM UUID", &app, "Source CVM ID"]);
    made.push(newest(&bench, &app, &made));
    bench.done(&made[1], "replicate");
    let said = bench.json(&["cvms", "replicate", &first, "--node-id", &node, "--json"]);
    made.push(text(&said["vm_uuid"]));
    bench.done(&made[2], "replicate");
    bench.tells(&["instances", "add", "--app-id", &app], &["CVM UUID", &app]);
    made.push(newest(&bench, &app, &made));
    bench.done(&made[3], "create");
    let said = bench.json(&["instances", "add", "--app-id", &format!("0x{app}"), "-c", &bench.compose, "--json"]);
    made.push(text(&said["vm_uuid"]));
    bench.done(&made[4], "create");
    // Several fit an app's id: the client is told so in the code on which it goes and picks one.
    let said = bench.json(&["cvms", "replicate", &app, "--json"]);
    made.push(text(&said["vm_uuid"]));
    bench.done(&made[5], "replicate");

    let listed = bench.json(&["instances", "ls", "--app-id", &app, "--json"]).to_string().replace('-', "");
    let shown = bench.tells(&["instances", "ls", "--app-id", &app], &["UUID", "running"]).replace('-', "");
    for cvm in &made {
        let bare = cvm.replace('-', "");
        assert!(listed.contains(&bare) && shown.contains(&bare), "{cvm}: {shown}");
    }
    bench.tells(&["instances", "rm", &made[1], "-y"], &["deleted successfully"]);
    let said = bench.json(&["instances", "rm", &made[2], &made[3], "-y", "--json"]).to_string();
    assert_eq!(said.matches("\"deleted\":true").count(), 2, "{said}");
    assert_eq!(bench.json(&["instances", "ls", "--app-id", &app, "--json"]).to_string().matches("running").count(), 3);
    for cvm in &made {
        if bench.cloud.status(cvm) == "running" {
            bench.human(&["cvms", "delete", cvm, "-y"]);
        }
    }
}

/// The CVM of the app that is not known yet.
fn newest(bench: &Bench, app: &str, known: &[String]) -> String {
    let list = bench.cloud.client.get(&format!("/api/v1/apps/{app}/cvms")).expect("it answers").json();
    let uuids = list.as_array().expect("a list").iter().map(|cvm| text(&cvm["vm_uuid"]));
    let same = |one: &str, two: &str| one.replace('-', "") == two.replace('-', "");
    let unknown: Vec<String> = uuids.filter(|uuid| !known.iter().any(|k| same(k, uuid))).collect();
    assert_eq!(unknown.len(), 1, "{list:#}");
    unknown[0].clone()
}
