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

/// A server whose data folder, the node's among it, lies on the small disk. Its log does not: it tells what happened.
fn cloud_on(small: &Small) -> Cloud {
    let folder = short_folder();
    let mut options = Options::new(holdfast_e2e::binary(), small.path().join("d")).args(SIMULATED);
    options.log = Some(folder.path().join("serve.log"));
    // However long it takes until the disk is full and there is room again: nothing is given up for that.
    for deadline in ["PREPARE", "START", "STOP"] {
        options.env.push((format!("HOLDFAST_DEADLINE_{deadline}_S"), "3600".to_owned()));
    }
    let server = Server::start(options).expect("the server starts");
    let client = server.client().expect("the first start wrote admin.key");
    Cloud { node: None, server, client, folder, token: None }
}

/// Fails unless it was refused for want of room, in words that name no file.
fn assert_full(cloud: &Cloud, answer: &Answer) {
    let all = || format!("{} {}\n{}", answer.status, answer.text, cloud.server.log_end(40));
    assert_eq!(answer.status, 503, "{}", all());
    assert!(answer.text.contains("HF-0007") && answer.text.contains("full"), "{}", all());
    assert!(!answer.text.contains("/tmp/"), "{}", all());
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
    assert_full(cloud, &committed);
    None
}

/// Asks for VMs until one is refused, because pages that the database holds already are written first; keeps the others,
/// and answers the name that was refused.
fn deploy_until_full(cloud: &Cloud, kept: &mut Vec<(String, String)>, prefix: &str) -> String {
    for n in 0..4000 {
        let name = format!("{prefix}-{n}");
        match deploy(cloud, &name) {
            Some(cvm) => kept.push((name, cvm)),
            None => return name,
        }
    }
    panic!("there was room for everything:\n{}", cloud.server.log_end(40))
}

/// Whatever was answered is carried out.
fn assert_kept(cloud: &Cloud, kept: &[(String, String)]) {
    for (index, (name, cvm)) in kept.iter().enumerate() {
        let number = format!("{name}, {index} of {}", kept.len());
        let create = operation::newest(&cloud.client, cvm).unwrap_or_else(|e| panic!("{number}: {e}"));
        let over = cloud.over(&text(&create["id"]), SOON);
        assert_eq!(over["status"], "done", "{number}: {over:#}\n{}", cloud.server.log_end(40));
    }
    let settled = until(SOON, "nothing is under way", || Ok((leftovers::held(cloud).claims == 0).then_some(())));
    settled.unwrap_or_else(|e| panic!("{e}\n{}", cloud.server.log_end(40)));
    truth::assert_consistent(cloud);
}

#[test]
fn the_disk_of_the_database() {
    let Some(small) = Small::mount(24) else { return };
    let mut cloud = cloud_on(&small);
    let first = cloud.deployed("before", SOON);
    let stop = cloud.power(&first, "stop");
    small.fill();
    let mut kept: Vec<(String, String)> = Vec::new();
    let refused = deploy_until_full(&cloud, &mut kept, "full");
    // What is smaller may still fit in; then that does not either. A file that the node has given up may leave a page.
    let tokens = (0..4000).find_map(|n| {
        let body = json!({ "name": format!("rack-{n}") });
        let token = cloud.client.post("/holdfast/v1/node-tokens", Some(&body)).expect("it answers");
        (token.status != 201).then_some(token)
    });
    assert_full(&cloud, &tokens.expect("at last there is no room for a token"));
    let another = deploy_until_full(&cloud, &mut kept, "another");
    // What can be read is read.
    assert_eq!(cloud.client.get("/api/v1/cvms/paginated").expect("it answers").status, 200);
    assert_eq!(cloud.client.get(&format!("/api/v1/cvms/{first}")).expect("it answers").status, 200);
    assert!(cloud.server.is_running().expect("asked"), "it goes on");
    small.free();
    // By the server that met the full disk.
    cloud.over(&stop, SOON);
    assert_kept(&cloud, &kept);
    for refused in [&refused, &another] {
        assert_eq!(truth::vms_named(&cloud, refused), Vec::<String>::new(), "nothing of what was refused");
        assert!(deploy(&cloud, refused).is_some(), "its name is free, and there is room");
    }
    truth::assert_chain(&cloud);
    // Killed with a full disk: it comes back when there is room, and everything with it.
    small.fill();
    deploy_until_full(&cloud, &mut kept, "again");
    cloud.server.kill().expect("it was running");
    small.free();
    cloud.server.restart().expect("it starts again");
    assert_kept(&cloud, &kept);
    truth::assert_chain(&cloud);
}

#[test]
fn the_disk_of_the_log() {
    let folder = short_folder();
    let mut options = Options::new(holdfast_e2e::binary(), folder.path().join("d")).args(SIMULATED);
    options.log = Some("/dev/full".into());
    options.env.push(("HOLDFAST_LOG".to_owned(), "debug".to_owned()));
    let server = Server::start(options).expect("the server starts");
    let client = server.client().expect("the first start wrote admin.key");
    let mut cloud = Cloud { node: None, server, client, folder, token: None };
    let cvm = cloud.deployed("unheard", SOON);
    cloud.deleted(&cvm);
    assert_eq!(cloud.server.stop().expect("it was running").code(), Some(0));
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
