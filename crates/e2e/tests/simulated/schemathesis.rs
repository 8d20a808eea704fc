//! Requests that schemathesis makes from `/openapi/phala.json`, those it thinks fit and those it thinks do not.
//!
//! The one rule: no answer is a fault of the server, and every status is one that the document names. Once with ids of its
//! own making, and once with those of a CVM that is there. The seed is the same each time, unless `HOLDFAST_FUZZ_SEED` says
//! otherwise.

use std::path::PathBuf;
use std::process::Command;

use holdfast_e2e::cloud::{Cloud, SOON};
use holdfast_e2e::truth;
use holdfast_harness::client::Answer;

const SEED: &str = "20260121";
/// Requests of each kind and route; besides one for each border that its schema has.
const EXAMPLES: &str = "12";

fn program() -> PathBuf {
    let path = holdfast_e2e::root().join("tests/schemathesis/.venv/bin/schemathesis");
    assert!(path.is_file(), "there is no {}; run `cargo xtask test simulated`, which installs it", path.display());
    path
}

/// Runs it with this configuration and these options.
fn run(cloud: &Cloud, name: &str, configuration: &str, options: &[&str]) {
    let file = cloud.folder.path().join(format!("{name}.toml"));
    // What waits for something is told not to wait.
    let quick = "[parameters]\n\"query.follow\" = false\n\"query.timeout\" = 1\n\"query.interval\" = 1\n";
    std::fs::write(&file, format!("{quick}{configuration}")).expect("written");
    let key = format!("X-API-Key: {}", cloud.client.key);
    let seed = std::env::var("HOLDFAST_FUZZ_SEED").unwrap_or_else(|_| SEED.to_owned());
    let mut command = Command::new(program());
    command.arg("--config-file").arg(&file).args(["--no-color", "run"]);
    command.arg(format!("{}/openapi/phala.json", cloud.client.base));
    command.args(["--header", &key, "--seed", &seed, "--max-examples", EXAMPLES]);
    command.args(["--checks", "not_a_server_error,status_code_conformance", "--warnings", "off"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink"]);
    // Nothing of it outlives the test.
    command.args(["--generation-database", "none", "--request-timeout", "20"]).args(options);
    let output = command.current_dir(cloud.folder.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let tested = said.lines().any(|line| line.trim().starts_with("Test cases:"));
    assert!(output.status.success() && tested, "{}", said.chars().take(20_000).collect::<String>());
}

#[test]
fn what_is_not_there() {
    let mut cloud = Cloud::simulated(1);
    run(&cloud, "absent", "", &[]);
    assert!(cloud.server.is_running().expect("asked"), "{}", cloud.server.log_end(40));
    truth::assert_consistent(&cloud);
}

#[test]
fn what_is_there() {
    let mut cloud = Cloud::simulated(1);
    let cvm = cloud.deployed("steady", SOON);
    let detail = cloud.client.get(&format!("/api/v1/cvms/{cvm}")).and_then(Answer::ok).expect("the CVM");
    let app = detail["app_id"].as_str().expect("an app");
    let revisions = cloud.client.get(&format!("/api/v1/apps/{app}/revisions")).and_then(Answer::ok).expect("a list");
    let revision = revisions["revisions"][0]["revision_id"].as_str().unwrap_or_else(|| panic!("{revisions}"));
    let ids = [
        ("cvm_id", cvm.as_str()),
        ("app_id", app),
        ("revision_id", revision),
        ("kms_id", "phala"),
        ("team_slug", "default"),
        ("family", "cpu"),
    ];
    let ids: String = ids.iter().map(|(name, id)| format!("\"path.{name}\" = \"{id}\"\n")).collect();
    run(&cloud, "there", &ids, &["--exclude-method", "DELETE", "--header", "X-Phala-Version: LATEST"]);
    assert!(cloud.server.is_running().expect("asked"), "{}", cloud.server.log_end(40));
    truth::assert_consistent(&cloud);
}
