//! `holdfast ops list` and `holdfast audit log` against a server.

use std::process::Command;

use holdfast_e2e::cloud::{Cloud, SOON};
use serde_json::Value;

/// Standard output and standard error of a command on the cloud's server; it must succeed.
fn holdfast(cloud: &Cloud, args: &[&str]) -> (String, String) {
    let mut command = Command::new(holdfast_e2e::binary());
    for name in ["HOLDFAST_URL", "HOLDFAST_API_KEY", "HOLDFAST_CONFIG"] {
        command.env_remove(name);
    }
    let output = command.args(args).arg("--data-dir").arg(cloud.data_dir()).output().expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn lists_are_filtered_and_followed() {
    let cloud = Cloud::simulated(1);
    let web = cloud.deployed("web-one", SOON);
    cloud.deployed("db-main", SOON);
    for verb in ["stop", "start"] {
        let id = cloud.power(&web, verb);
        cloud.done(&id, SOON);
    }
    let refused = cloud.client.post(&format!("/api/v1/cvms/{web}/start"), None).expect("the server answers");
    assert_eq!(refused.status, 409);

    let types = |args: &[&str]| -> Vec<String> {
        let (text, _) = holdfast(&cloud, &[&["ops", "list", "--all", "--json"], args].concat());
        lines(&text).iter().map(|o| o["operation_type"].as_str().expect("a type").to_owned()).collect()
    };
    assert_eq!(types(&[]), ["power_on", "power_off", "create", "create"]);
    assert_eq!(types(&["--name-prefix", "web"]), ["power_on", "power_off", "create"]);
    assert_eq!(types(&["--type", "power_on,create", "--resource", &web]), ["power_on", "create"]);
    assert_eq!(types(&["--actor", "nobody"]), [""; 0]);
    assert_eq!(types(&["--status", "done", "--actor", "admin"]).len(), 4);
    assert_eq!(types(&["--since", "2001-01-01T00:00:00Z", "--until", "2001-01-02T00:00:00Z"]), [""; 0]);

    let (table, said) = holdfast(&cloud, &["ops", "list", "--limit", "3"]);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(said.contains("3 of 4"), "{said}");
    let (table, said) = holdfast(&cloud, &["ops", "list", "--all"]);
    assert_eq!((table.lines().count(), said.as_str()), (5, ""), "{table}");

    let (text, _) = holdfast(&cloud, &["audit", "log", "--all", "--json", "--refused"]);
    let entries = lines(&text);
    assert_eq!(entries.len(), 1, "{text}");
    assert_eq!((entries[0]["status_code"].as_i64(), entries[0]["client_ip"].as_str()), (Some(409), Some("127.0.0.1")));
    let (table, _) = holdfast(&cloud, &["audit", "log", "--action", "vm.power_on"]);
    assert!(table.lines().nth(1).is_some_and(|line| line.contains("admin") && line.contains("/start")), "{table}");
}
