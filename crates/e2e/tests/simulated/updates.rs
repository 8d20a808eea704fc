//! Changing an app with the official command line: compose file, env, size; and an update that does not come up.
//!
//! The one rule: a command that says it succeeded is believed only when the operation behind it did, and did what was
//! asked.

use std::path::PathBuf;

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{Cloud, SOON, text};
use holdfast_harness::operation;
use serde_json::{Value, json};

const NAME: &str = "changing";
const FIRST: &str = "services:\n  web:\n    image: hello:1\n    ports: [\"8080:80\"]\n";
const SECOND: &str = "services:\n  web:\n    image: hello:2\n    ports: [\"8080:80\"]\n";
const TWO_PORTS: &str = "services:\n  web:\n    image: hello:2\n    ports: [\"8080:80\", \"9090:90\"]\n";
/// The simulated guest fails an app that has this service.
const BROKEN: &str = "services:\n  holdfast-sim-fail:\n    image: hello:3\n    ports: [\"8080:80\"]\n";

struct App {
    cloud: Cloud,
    phala: Phala,
    cvm: String,
}

impl App {
    /// Deployed by the command line, and running.
    fn deployed() -> Self {
        let cloud = Cloud::simulated(20);
        let phala = Phala::new(&cloud);
        let file = write(&cloud, FIRST);
        let deployed = phala.json(&["deploy", "-c", &file, "-n", NAME, "-e", "A=1", "-j"]);
        let cvm = text(&deployed["vm_uuid"]);
        let app = Self { cloud, phala, cvm };
        app.done("create");
        app
    }

    /// Runs a command that must succeed; all that it tells a person, whatever stream it uses.
    fn human(&self, args: &[&str]) -> String {
        let said = self.phala.try_run(args);
        let all = said.out + &said.err;
        assert!(said.ok, "phala {}\n{all}", args.join(" "));
        all
    }

    /// The newest operation, which must be of this type and end well.
    fn done(&self, operation_type: &str) -> Value {
        let over = self.over(operation_type);
        assert_eq!(over["status"], "done", "{over:#}");
        over
    }

    fn over(&self, operation_type: &str) -> Value {
        let newest = operation::newest(&self.cloud.client, &self.cvm).expect("an operation");
        assert_eq!(newest["operation_type"], operation_type, "{newest:#}");
        self.cloud.over(&text(&newest["id"]), SOON)
    }

    fn detail(&self) -> Value {
        self.cloud.client.get(&format!("/api/v1/cvms/{}", self.cvm)).expect("it answers").json()
    }

    fn composition(&self) -> Value {
        self.cloud.client.get(&format!("/api/v1/cvms/{}/composition", self.cvm)).expect("it answers").json()
    }
}

fn write(cloud: &Cloud, compose: &str) -> String {
    let file: PathBuf = cloud.folder.path().join("docker-compose.yml");
    std::fs::write(&file, compose).expect("a compose file");
    file.to_str().expect("a path").to_owned()
}

fn changed(operation: &Value) -> Vec<&str> {
    operation["changes"].as_object().expect("changes").keys().map(String::as_str).collect()
}

#[test]
fn a_compose_file_by_the_command_line() {
    let app = App::deployed();
    let before = app.detail();
    let file = write(&app.cloud, SECOND);
    let said = app.human(&["deploy", "--cvm-id", NAME, "-c", &file, "-e", "A=1", "-e", "B=2", "--wait"]);
    assert!(said.contains("CVM is ready"), "{said}");
    // It waited for the update, not for the app before it.
    let newest = operation::newest(&app.cloud.client, &app.cvm).expect("an operation");
    assert_eq!(newest["status"], "done", "--wait came back before the update was over: {newest:#}");
    let done = app.done("compose_update");
    assert_eq!(changed(&done), ["allowed_envs", "compose_hash", "env", "env_values_replaced"]);
    assert_eq!(operation::steps(&done)[..2], ["apply", "launch"], "the CVM did not start anew");
    assert_eq!(app.composition()["containers"][0]["image"], "hello:2");
    let after = app.detail();
    assert_eq!(after["endpoints"], before["endpoints"]);
    assert_ne!(after["compose_hash"], before["compose_hash"]);
    assert_eq!(after["compose_hash"], done["changes"]["compose_hash"]["to"]);

    let file = write(&app.cloud, TWO_PORTS);
    let said = app.phala.json(&["deploy", "--cvm-id", NAME, "-c", &file, "--no-public-logs", "-j"]);
    assert_eq!(said["success"], true, "{said}");
    let done = app.done("update");
    assert_eq!(changed(&done), ["compose_hash", "ports", "public_logs"]);
    assert!(operation::steps(&done).starts_with(&["apply".into(), "start".into()]), "a port needs a new start");
    let after = app.detail();
    assert_eq!(after["endpoints"].as_array().map(Vec::len), Some(2));
    assert_eq!(after["endpoints"][0], before["endpoints"][0], "a port keeps its place");
    assert_eq!(after["public_logs"], false);
}

#[test]
fn a_size_by_the_command_line() {
    let app = App::deployed();
    let said = app.phala.json(&["cvms", "resize", NAME, "--vcpu", "2", "-y", "--json"]);
    assert_eq!((&said["success"], &said["vcpu"], &said["allow_restart"]), (&json!(true), &json!(2), &json!(true)));
    let done = app.done("resize");
    assert_eq!(done["changes"]["vcpu"], json!({ "from": 1, "to": 2 }));
    // For people it asks for every size that it is not given, -y or not.
    let sizes = ["--vcpu", "2", "--memory", "4096", "--disk-size", "40", "--allow-restart", "true"];
    let said = app.human(&[&["cvms", "resize", NAME, "-y"], &sizes[..]].concat());
    assert!(said.contains("is being resized"), "{said}");
    let done = app.done("resize");
    assert_eq!(changed(&done), ["disk_gb", "memory_mb"]);
    let resource = app.phala.json(&["cvms", "get", NAME, "--json"])["resource"].clone();
    assert_eq!((&resource["vcpu"], &resource["disk_in_gb"]), (&json!(2), &json!(40)), "{resource}");
    assert_eq!(resource["memory_in_gb"].as_f64(), Some(4.0));
    // A disk is never made smaller, and a refusal is said at once.
    let said = app.phala.try_run(&["cvms", "resize", NAME, "--disk-size", "10", "-y", "--json"]);
    assert!(!said.ok && (said.out + &said.err).contains("never made smaller"));
    let said = app.phala.try_run(&["cvms", "resize", NAME, "--vcpu", "4", "--allow-restart", "false", "-y", "--json"]);
    assert!(!said.ok && (said.out + &said.err).contains("start anew"));
    assert_eq!(app.detail()["status"], "running");
}

#[test]
fn env_values_by_the_command_line() {
    let app = App::deployed();
    let said = app.human(&["envs", "update", NAME, "-e", "A=2", "-e", "C=secret-value-77"]);
    let done = app.done("env_update");
    assert!(said.contains("initiated") && said.contains(&text(&done["id"])), "{said}");
    assert_eq!(done["changes"]["env"], json!({ "from": ["A"], "to": ["A", "C"] }));
    let hash = app.detail()["compose_hash"].clone();
    app.human(&["envs", "update", NAME, "-e", "A=3", "-e", "C=4", "--json"]);
    assert_eq!(changed(&app.done("env_update")), ["env_values_replaced"]);
    assert_eq!(app.detail()["compose_hash"], hash, "values are not measured");
    let operations = app.phala.run(&["api", &format!("/cvms/{NAME}/operations")]);
    assert!(operations.contains("env_update") && !operations.contains("secret-value-77"));
}

#[test]
fn an_update_whose_app_does_not_come_up_goes_back_by_itself() {
    let app = App::deployed();
    let before = app.detail();
    let file = write(&app.cloud, BROKEN);
    app.phala.run(&["deploy", "--cvm-id", NAME, "-c", &file]);
    let failed = app.over("compose_update");
    assert_eq!(failed["status"], "failed", "{failed:#}");
    let why = text(&failed["error"]["message"]);
    assert!(why.contains("it was told to fail"), "the guest's own error: {why}");
    assert!(operation::steps(&failed).contains(&"undo_apply".to_owned()));
    let after = app.detail();
    for field in ["status", "compose_hash", "endpoints", "compose_file"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(app.composition()["containers"][0]["image"], "hello:1", "the last good revision runs");
    // The next one finds nothing in its way.
    let file = write(&app.cloud, SECOND);
    app.phala.run(&["deploy", "--cvm-id", NAME, "-c", &file, "--wait"]);
    app.done("compose_update");
    assert_eq!(app.composition()["containers"][0]["image"], "hello:2");
}

#[test]
fn an_app_that_never_came_up_is_repaired_by_an_update() {
    let cloud = Cloud::simulated(20);
    let (cvm, create) = {
        let cvm = cloud.client.deploy(NAME, BROKEN, &json!({})).expect("accepted");
        let create = operation::newest(&cloud.client, &cvm).expect("an operation");
        (cvm, text(&create["id"]))
    };
    assert_eq!(cloud.over(&create, SOON)["status"], "failed");
    assert_eq!(cloud.status(&cvm), "error");
    let phala = Phala::new(&cloud);
    let file = write(&cloud, FIRST);
    phala.run(&["deploy", "--cvm-id", NAME, "-c", &file, "--wait"]);
    assert_eq!(cloud.status(&cvm), "running");
}
