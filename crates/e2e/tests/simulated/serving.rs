//! The process itself: start, stop, and everything that can be wrong before it serves.
//!
//! The one rule: what cannot work ends with exit code 2 and one clear line.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use holdfast_e2e::cloud::{Cloud, SOON};
use holdfast_harness::free_port;

fn serve(args: &[&str]) -> Output {
    Command::new(holdfast_e2e::binary()).arg("serve").args(args).output().expect("holdfast runs")
}

fn one_clear_line(what: &str, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {text}");
    assert_eq!(text.trim().lines().count(), 1, "{what}: {text}");
    assert!(!text.contains("panicked"), "{what}: {text}");
    text
}

#[test]
fn refuses_to_start_with_one_clear_line() {
    let cloud = Cloud::simulated(1);
    let folder = tempfile::tempdir().expect("a folder");
    let fresh = folder.path().join("fresh");
    let fresh = fresh.to_str().expect("a path");
    let used = cloud.data_dir();
    let used = used.to_str().expect("a path");
    let listen = format!("127.0.0.1:{}", free_port().expect("a port"));
    let taken = cloud.client.base.trim_start_matches("http://").to_owned();
    let config = folder.path().join("bad.toml");
    std::fs::write(&config, "nonsense = 5\n").expect("written");
    let config = config.to_str().expect("a path");
    let simulated = ["--hypervisor", "simulated"];
    for (what, args) in [
        ("the data folder is in use", vec!["--data-dir", used, "--listen", &listen]),
        ("the port is in use", vec!["--data-dir", fresh, "--listen", &taken]),
        ("an unknown key", vec!["--data-dir", fresh, "--listen", &listen, "--config", config]),
        ("no such config", vec!["--data-dir", fresh, "--listen", &listen, "--config", "/nowhere.toml"]),
        ("not loopback, no TLS", vec!["--data-dir", fresh, "--listen", "0.0.0.0:0"]),
        ("a bad listen address", vec!["--data-dir", fresh, "--listen", "here"]),
    ] {
        one_clear_line(what, &serve(&[&args[..], &simulated].concat()));
    }
    let output = serve(&["--data-dir", fresh, "--hypervisor", "nonsense"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn refuses_another_master_key() {
    let mut cloud = Cloud::simulated(1);
    let stopped = cloud.server.stop().expect("it was running");
    assert_eq!(stopped.code(), Some(0));
    let key = cloud.data_dir().join("master.key");
    assert_eq!(std::fs::metadata(&key).expect("it is there").permissions().mode() & 0o777, 0o600);
    let right = std::fs::read(&key).expect("readable");
    std::fs::write(&key, format!("{}\n", "ab".repeat(32))).expect("written");
    let data = cloud.data_dir();
    let listen = format!("127.0.0.1:{}", free_port().expect("a port"));
    let args = ["--data-dir", data.to_str().expect("a path"), "--listen", &listen, "--hypervisor", "simulated"];
    let line = one_clear_line("another master key", &serve(&args));
    assert!(line.contains("master key"), "{line}");
    std::fs::write(&key, right).expect("written");
    cloud.server.restart().expect("with the right key it starts");
}

#[test]
fn stops_within_five_seconds_and_keeps_everything() {
    let mut cloud = Cloud::simulated(50);
    let cvm = cloud.deployed("keeper", SOON);
    let (busy, create) = cloud.deploy("busybody");
    let start = Instant::now();
    let status = cloud.server.stop().expect("it was running");
    assert_eq!(status.code(), Some(0), "{}", cloud.server.log_end(20));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let key = std::fs::metadata(cloud.server.key_path()).expect("admin.key stays");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    cloud.server.restart().expect("it starts again");
    assert_eq!(cloud.status(&cvm), "running");
    cloud.done(&create, SOON);
    assert_eq!(cloud.status(&busy), "running");
}

#[test]
fn a_restarted_server_reports_a_stopped_cvm_as_stopped() {
    let mut cloud = Cloud::simulated(5);
    let cvm = cloud.deployed("still", SOON);
    let id = cloud.power(&cvm, "stop");
    cloud.done(&id, SOON);
    cloud.server.kill().expect("it was running");
    cloud.server.restart().expect("it starts again");
    cloud.wait_node();
    assert_eq!(cloud.status(&cvm), "stopped");
}
