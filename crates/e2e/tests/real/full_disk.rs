//! The host's disk fills up under a running VM.
//!
//! The one rule: the VM waits in the middle of its write and loses nothing; once there is room it goes on by itself, as the
//! same machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use holdfast_e2e::cloud::{AFTER_CRASH, BOOT, Cloud, short_folder, text};
use holdfast_e2e::leftovers;
use holdfast_e2e::small::Small;
use holdfast_harness::client::Answer;
use holdfast_harness::server::{Options, Server};
use holdfast_harness::{operation, process, until};
use serde_json::{Value, json};

/// Writes for ever.
const WRITER: &str = "while true; do dd if=/dev/urandom of=/data/filler bs=1M count=16 conv=fsync; sleep 1; done";

/// What QEMU says of itself; null when it does not answer.
fn state(folder: &Path) -> Value {
    let ask = || -> std::io::Result<Value> {
        let mut stream = UnixStream::connect(folder.join("qmp.sock"))?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        for command in ["qmp_capabilities", "query-status"] {
            writeln!(stream, "{}", json!({ "execute": command, "id": command }))?;
        }
        let answer = lines.map_while(Result::ok).find(|line| line.contains("\"id\": \"query-status\""));
        Ok(serde_json::from_str(&answer.unwrap_or_default())?)
    };
    ask().unwrap_or_default()["return"]["status"].take()
}

fn get(cloud: &Cloud, path: &str) -> Value {
    cloud.client.get(path).and_then(Answer::ok).expect("it answers")
}

/// Until the CVM says that it stands still for want of room, or does not any more.
fn until_told(cloud: &Cloud, cvm: &str, paused: bool) {
    let path = format!("/api/v1/cvms/{cvm}/state");
    let told = until(AFTER_CRASH, &format!("it is told (paused: {paused})"), || {
        let why = get(cloud, &path)["boot_error"].clone();
        Ok((why.as_str().is_some_and(|why| why.starts_with("paused: ")) == paused).then_some(()))
    });
    told.unwrap_or_else(|e| panic!("{e}: {:#}\n{}", get(cloud, &path), cloud.server.log_end(30)));
}

#[test]
fn a_vm_that_cannot_write_waits_for_room() {
    let Some(small) = Small::mount(1100) else { return };
    let mut options = Options::new(holdfast_e2e::binary(), small.path().join("d"));
    for (name, value) in [("MIN_FREE_DISK_GB", "0"), ("DISK_OVERCOMMIT", "1000")] {
        options.env.push((format!("HOLDFAST_{name}"), value.to_owned()));
    }
    let server = Server::start(options).expect("the server starts");
    let client = server.client().expect("the first start wrote admin.key");
    let cloud = Cloud { node: None, server, client, folder: short_folder(), token: None };
    let app = json!({ "name": "", "runner": "bash", "bash_script": WRITER, "public_logs": true });
    let cvm = cloud.client.deploy("writer", "", &json!({ "compose_file": app })).expect("accepted");
    let create = operation::newest(&cloud.client, &cvm).expect("an operation");
    cloud.done(&text(&create["id"]), BOOT);
    let machines = process::vms_of(small.path());
    small.fill();
    let folder = cloud.node_dir().join("vms").join(&cvm);
    let stopped =
        until(AFTER_CRASH, "QEMU stops for want of room", || Ok((state(&folder) == "io-error").then_some(())));
    stopped.unwrap_or_else(|e| panic!("{e}: {}", state(&folder)));
    assert_eq!(cloud.client.get("/api/v1/cvms/paginated").expect("it answers").status, 200);
    // Whoever looks is told so; here, where the database lies on the same disk, once that has a little room again.
    small.grow(1140);
    until_told(&cloud, &cvm, true);
    let stats = cloud.client.get(&format!("/api/v1/cvms/{cvm}/stats")).and_then(Answer::ok).expect("it answers");
    assert!(text(&stats["error"]).contains("full"), "{stats:#}");
    small.free();
    let running = until(AFTER_CRASH, "it goes on", || Ok((state(&folder) == "running").then_some(())));
    running.unwrap_or_else(|e| panic!("{e}: {}\n{}", state(&folder), cloud.server.log_end(30)));
    until_told(&cloud, &cvm, false);
    cloud.wait_status(&cvm, "running", AFTER_CRASH);
    let app = text(&get(&cloud, &format!("/api/v1/cvms/{cvm}"))["app_id"]);
    let events = cloud.client.get(&format!("/api/v1/apps/{app}/events")).and_then(Answer::ok).expect("it answers");
    let types: Vec<_> = events["events"].as_array().expect("events").iter().map(|e| text(&e["event_type"])).collect();
    for (event, before) in [("instance.paused", "instance.create.end"), ("instance.resumed", "instance.paused")] {
        let place = |name: &str| types.iter().position(|t| t == name).unwrap_or_else(|| panic!("{name}: {types:?}"));
        assert!(place(event) < place(before), "newest first: {types:?}");
    }
    assert_eq!(process::vms_of(small.path()), machines, "the same machine");
    cloud.deleted(&cvm);
    assert_eq!(leftovers::paths_naming(small.path(), &cvm), Vec::<std::path::PathBuf>::new());
    assert!(process::vms_of(small.path()).is_empty());
}
