//! Every action of the official SDKs: `tests/clients/every_action.mjs` and `every_method.py`, against a server of their own.
//!
//! The one rule: the SDKs judge our answers by their own schemas, and each script fails when its SDK has an action that it
//! neither calls nor excludes with a reason.

use std::process::{Command, Output};

use holdfast_e2e::cloud::Cloud;
use holdfast_e2e::github;
use serde_json::Value;

/// Runs a script of `tests/clients/` on a fresh server; it must find no problem.
fn judged(program: &str, script: &str, args: &[&str]) {
    let github = github::serve(&[github::key(101), github::key(102)]);
    let cloud = Cloud::simulated_with("HOLDFAST_GITHUB_URL", &github);
    let folder = holdfast_e2e::root().join("tests/clients");
    let program = if program.contains('/') { folder.join(program) } else { program.into() };
    let Output { status, stdout, stderr } = Command::new(&program)
        .arg(folder.join(script))
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PHALA_CLOUD_API_PREFIX", format!("{}/api/v1", cloud.client.base))
        .env("PHALA_CLOUD_API_KEY", &cloud.client.key)
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}; `cargo xtask test simulated` installs it", program.display()));
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{script} {args:?}: {e}\n{out}{err}"));
    let problems: Vec<&str> = told["problems"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(status.success() && problems.is_empty(), "{script} {args:?}\n{}\n{err}", problems.join("\n"));
    let count = told["called"].as_array().map_or(0, Vec::len);
    println!("{script} {args:?}: {count} called, not routed yet: {}", told["not_routed"]);
}

#[test]
fn typescript_at_2025_10_28() {
    judged("node", "every_action.mjs", &["2025-10-28"]);
}

#[test]
fn typescript_at_2026_01_21() {
    judged("node", "every_action.mjs", &["2026-01-21"]);
}

#[test]
fn python_at_its_default_version() {
    judged(".venv/bin/python", "every_method.py", &["2026-06-23", "sync"]);
    judged(".venv/bin/python", "every_method.py", &["2026-06-23", "async"]);
}

#[test]
fn python_at_2026_01_21() {
    judged(".venv/bin/python", "every_method.py", &["2026-01-21", "sync"]);
    judged(".venv/bin/python", "every_method.py", &["2026-01-21", "async"]);
}
