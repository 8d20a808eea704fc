//! A full disk: the server's, where its database is, and a node's.
//!
//! The one rule: what was answered is kept and carried out once there is room; what cannot be written is refused with a
//! code, and nothing of it happened.

use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON, short_folder, text};
use holdfast_e2e::small::Small;
use holdfast_e2e::{leftovers, truth};
use holdfast_harness::client::Answer;
use holdfast_harness::server::{Options, Server};
use holdfast_harness::{operation, until};
use serde_json::{Value, json};

const SIMULATED: [&str; 4] = ["--hypervisor", "simulated", "--simulated-step-ms", "20"];

/// A server whose data folder, the node's among it, lies on the small disk.
fn cloud_on(small: &Small) -> Cloud {
    let options = Options::new(holdfast_e2e::binary(), small.path().join("d")).args(SIMULATED);
    let server = Server::start(options).expect("the server starts");
    let client = server.client().expect("the first start wrote admin.key");
    Cloud { node: None, server, client, folder: short_folder(), token: None }
}

/// Asks for another VM; `None` when it was refused for want of room.
fn deploy(cloud: &Cloud, name: &str) -> Option<String> {
    let provisioned = cloud.client.provision(name, COMPOSE, &json!({})).expect("the server answers");
    let committed = match provisioned.status {
        200 => cloud.client.commit(&provisioned.json(), None).expect("the server answers"),
        _ => provisioned,
    };
    if committed.status == 200 {
        return Some(text(&committed.json()["vm_uuid"]));
    }
    assert_eq!(committed.status, 503, "{}", committed.text);
    assert!(committed.text.contains("HF-0007") && committed.text.contains("full"), "{}", committed.text);
    assert!(!committed.text.contains("/tmp/"), "{}", committed.text);
    None
}

#[test]
fn the_disk_of_the_database() {
    let Some(small) = Small::mount(24) else { return };
    let mut cloud = cloud_on(&small);
    let first = cloud.deployed("before", SOON);
    let stop = cloud.power(&first, "stop");
    small.fill();
    // Pages that the database holds already are written first.
    let mut kept: Vec<(String, String)> = Vec::new();
    let refused = (0..2000).map(|n| format!("full-{n}")).find_map(|name| match deploy(&cloud, &name) {
        Some(cvm) => {
            kept.push((name, cvm));
            None
        }
        None => Some(name),
    });
    let refused = refused.expect("at last there is no room");
    // It stays so, and what can be read is read.
    assert_eq!(deploy(&cloud, "another"), None);
    let token = cloud.client.post("/holdfast/v1/node-tokens", Some(&json!({ "name": "rack-1" }))).expect("it answers");
    assert_eq!((token.status, &token.json()["error"]["code"]), (503, &json!("HF-0007")), "{}", token.text);
    assert_eq!(cloud.client.get("/api/v1/cvms/paginated").expect("it answers").status, 200);
    assert_eq!(cloud.client.get(&format!("/api/v1/cvms/{first}")).expect("it answers").status, 200);
    assert!(cloud.server.is_running().expect("asked"), "it goes on");
    small.free();
    // Whatever was answered is carried out, by the server that met the full disk.
    cloud.over(&stop, SOON);
    for (name, cvm) in &kept {
        let create = operation::newest(&cloud.client, cvm).unwrap_or_else(|e| panic!("{name}: {e}"));
        cloud.done(&text(&create["id"]), SOON);
    }
    assert_eq!(truth::vms_named(&cloud, &refused), Vec::<String>::new(), "nothing of what was refused");
    assert!(deploy(&cloud, &refused).is_some(), "its name is free, and there is room");
    let settled = until(SOON, "nothing is under way", || Ok((leftovers::held(&cloud).claims == 0).then_some(())));
    settled.expect("every operation ends");
    truth::assert_consistent(&cloud);
    truth::assert_chain(&cloud);
    // Killed with a full disk: it comes back when there is room, and everything with it.
    small.fill();
    while deploy(&cloud, &format!("again-{}", kept.len())).is_some_and(|cvm| {
        kept.push((String::new(), cvm));
        kept.len() < 4000
    }) {}
    cloud.server.kill().expect("it was running");
    small.free();
    cloud.server.restart().expect("it starts again");
    for (name, cvm) in &kept {
        let create = operation::newest(&cloud.client, cvm).unwrap_or_else(|e| panic!("{name}: {e}"));
        cloud.done(&text(&create["id"]), SOON);
    }
    truth::assert_consistent(&cloud);
}

fn node_on(small: &Small, prepare_s: &str) -> Cloud {
    let folder = short_folder();
    let mut options = Options::new(holdfast_e2e::binary(), folder.path().join("d"));
    for deadline in ["PREPARE", "START"] {
        options.env.push((format!("HOLDFAST_DEADLINE_{deadline}_S"), prepare_s.to_owned()));
    }
    Cloud::apart_at(folder, options, &SIMULATED, Vec::new(), small.path().join("n"))
}

/// Waits until the node has told the server that its disk is full.
fn until_told(cloud: &Cloud, cvm: &str) {
    let sql = "SELECT o.report FROM vm_observed o JOIN vm v ON v.id = o.vm_id WHERE v.uuid = $1";
    let told = until(SOON, "the node says that its disk is full", || {
        let rows = truth::rows(&cloud.data_dir().join("holdfast.db"), sql, cvm);
        let said = rows.first().map(|row| sqlx::Row::get::<String, _>(row, 0)).unwrap_or_default();
        Ok(said.contains("disk_full").then_some(()))
    });
    told.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(30)));
}

#[test]
fn the_disk_of_a_node() {
    let Some(small) = Small::mount(8) else { return };
    let mut cloud = node_on(&small, "60");
    let running = cloud.deployed("running", SOON);
    let doomed = cloud.deployed("doomed", SOON);
    small.fill();
    // It waits, and goes on when there is room.
    let (waiting, create) = cloud.deploy("waiting");
    until_told(&cloud, &waiting);
    let now = operation::by_id(&cloud.client, &create).expect("it is there");
    assert_eq!((&now["status"], &now["error"]), (&json!("running"), &Value::Null), "{now:#}");
    assert_eq!(cloud.status(&running), "running", "the others go on");
    // What makes room is done at once.
    cloud.deleted(&doomed);
    // A node that was killed with a full disk is as well.
    cloud.node().kill().expect("it was running");
    cloud.node().restart().expect("it starts again");
    cloud.wait_status(&running, "running", SOON);
    small.free();
    cloud.done(&create, SOON);
    assert_eq!(cloud.status(&waiting), "running");
    for cvm in [&running, &waiting] {
        cloud.deleted(cvm);
        assert_eq!(leftovers::paths_naming(small.path(), cvm), Vec::<std::path::PathBuf>::new());
    }
    leftovers::assert_none(&cloud, &doomed);
    truth::assert_consistent(&cloud);
}

#[test]
fn a_node_without_room_is_waited_for_only_so_long() {
    let Some(small) = Small::mount(8) else { return };
    let cloud = node_on(&small, "2");
    let steady = cloud.deployed("steady", SOON);
    small.fill();
    let (cvm, create) = cloud.deploy("in-vain");
    let over = cloud.over(&create, SOON);
    assert_eq!((&over["status"], &over["error"]["code"]), (&json!("failed"), &json!("HF-0209")), "{over:#}");
    assert!(text(&over["error"]["message"]).contains("disk is full"), "{over:#}");
    truth::assert_story(&cloud, &over);
    // Undone on a disk that is still full.
    assert_eq!(cloud.status(&cvm), "deleted");
    assert_eq!(cloud.status(&steady), "running");
    let again = cloud.client.provision("in-vain", COMPOSE, &json!({})).and_then(Answer::ok);
    again.expect("its name is free");
    small.free();
    let id = cloud.power(&steady, "restart");
    cloud.done(&id, SOON);
    cloud.deleted(&steady);
    leftovers::assert_none(&cloud, &cvm);
    truth::assert_consistent(&cloud);
}
