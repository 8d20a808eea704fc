//! Webhooks of the real binary: what a killed server still tells, and whether the official SDKs believe it.
//!
//! The one rule: the receiver keeps everything in the order in which it came. What is missing, out of order or under another
//! id there is a fault of ours; what came twice is not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_e2e::cloud::{AFTER_CRASH, Cloud, SOON, text};
use holdfast_e2e::leftovers::files_holding;
use holdfast_e2e::truth::rows;
use holdfast_harness::until;
use serde_json::{Value, json};
use sqlx::Row;

/// How long the receiver takes to answer: long enough that a kill falls between a delivery and its answer.
const SLOWNESS: Duration = Duration::from_millis(20);

const EVENTS: [&str; 11] = [
    "cvm.created",
    "cvm.started",
    "cvm.create_failed",
    "cvm.restarted",
    "cvm.updated",
    "cvm.stopped",
    "cvm.deleted",
    "operation.accepted",
    "operation.succeeded",
    "operation.failed",
    "operation.cancelled",
];

type Headers = BTreeMap<String, String>;

/// Takes everything, and keeps it.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<(Headers, String)>>>);

impl Receiver {
    fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let receiver = Self::default();
        let shared = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let receiver = shared.clone();
                std::thread::spawn(move || receiver.serve(stream));
            }
        });
        (receiver, url)
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut write = stream.try_clone().ok()?;
        let mut read = BufReader::new(stream);
        loop {
            let mut headers = Headers::new();
            loop {
                let mut line = String::new();
                if read.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                match line.trim_end() {
                    "" => break,
                    line => headers.extend(line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_owned()))),
                }
            }
            let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
            read.read_exact(&mut body).ok()?;
            self.0.lock().expect("no panic").push((headers, String::from_utf8(body).expect("text")));
            std::thread::sleep(SLOWNESS);
            write.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
        }
    }

    fn got(&self) -> Vec<(Headers, String)> {
        self.0.lock().expect("no panic").clone()
    }

    fn of(&self, cvm: &str) -> Vec<Value> {
        let all = self.got().into_iter().map(|(_, body)| serde_json::from_str::<Value>(&body).expect("JSON"));
        all.filter(|body| body["data"]["cvm_id"] == cvm).collect()
    }
}

fn webhook(cloud: &Cloud, url: &str) -> (String, String) {
    let body = json!({ "url": url, "events": EVENTS });
    let made = cloud.client.post("/api/v1/workspace/webhooks", Some(&body)).expect("an answer").ok().expect("created");
    (text(&made["id"]), text(&made["secret"]))
}

/// What has to be told of a CVM, by its events in the database.
fn expected(cloud: &Cloud, cvm: &str) -> Vec<(String, String)> {
    let sql = "SELECT o.uuid, o.operation_type, o.status, e.event_type FROM event_position p
        JOIN operation_event e ON e.id = p.event_id JOIN operation o ON o.id = e.operation_id
        WHERE e.step IS NULL AND o.resource_uuid = $1 ORDER BY p.position";
    let mut all = Vec::new();
    for row in rows(&cloud.data_dir().join("holdfast.db"), sql, cvm) {
        let (operation, kind): (String, String) = (row.get(0), row.get(1));
        let (status, event): (String, String) = (row.get(2), row.get(3));
        let names = match (event.rsplit('.').next(), kind.as_str()) {
            (Some("start"), "create") => vec!["operation.accepted", "cvm.created"],
            (Some("start"), _) => vec!["operation.accepted"],
            (Some("end"), "create") => vec!["cvm.started", "operation.succeeded"],
            (Some("end"), "power_off") => vec!["cvm.stopped", "operation.succeeded"],
            (Some("end"), "delete") => vec!["cvm.deleted", "operation.succeeded"],
            (_, "create") if status == "cancelled" => vec!["cvm.create_failed", "operation.cancelled"],
            (_, "create") => vec!["cvm.create_failed", "operation.failed"],
            _ => vec!["operation.failed"],
        };
        all.extend(names.into_iter().map(|name| (operation.clone(), name.to_owned())));
    }
    all
}

/// What was told of a CVM, each event where it came first.
fn told(receiver: &Receiver, cvm: &str) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut all = receiver.of(cvm);
    all.retain(|body| seen.insert(text(&body["id"])));
    all.iter().map(|body| text(&body["event"])).collect()
}

#[test]
fn a_server_that_is_killed_tells_everything_in_order() {
    let mut cloud = Cloud::simulated_for_webhooks(5);
    let (receiver, url) = Receiver::start();
    webhook(&cloud, &url);
    let mut cvms = Vec::new();
    for delay in [0, 5, 15, 30, 60, 90, 120, 200] {
        let (first, create) = cloud.deploy(&format!("killed-{delay}"));
        let (second, beside) = cloud.deploy(&format!("beside-{delay}"));
        // The delay is what is tested.
        std::thread::sleep(Duration::from_millis(delay));
        cloud.server.kill().expect("the server was running");
        cloud.server.restart().expect("the server starts again");
        let over = cloud.over(&create, AFTER_CRASH);
        if over["status"] == "done" {
            let stop = cloud.power(&first, "stop");
            std::thread::sleep(Duration::from_millis(delay / 2));
            cloud.server.kill().expect("the server was running");
            cloud.server.restart().expect("the server starts again");
            cloud.over(&stop, AFTER_CRASH);
        }
        cloud.over(&beside, AFTER_CRASH);
        cvms.extend([first, second]);
    }
    let mut repeated = 0;
    for cvm in &cvms {
        let names = || expected(&cloud, cvm).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        let all = until(SOON, "everything is told", || {
            let told = told(&receiver, cvm);
            Ok((told.len() >= names().len()).then_some(told))
        });
        let all = all.unwrap_or_else(|e| {
            panic!("{e}: {:?} of {:?}\n{}", told(&receiver, cvm), names(), cloud.server.log_end(20))
        });
        assert_eq!(all, names(), "{cvm}");
        // An event that comes again has the same id and the same body.
        let mut ids: HashMap<(String, String, String), Value> = HashMap::new();
        let bodies = receiver.of(cvm);
        repeated += bodies.len() - all.len();
        for body in bodies {
            let event = (text(&body["event"]), text(&body["created_at"]), body["data"]["operation_id"].to_string());
            let known = ids.entry(event).or_insert_with(|| body.clone());
            assert_eq!(*known, body);
        }
    }
    println!("{} deliveries, {repeated} of them again", receiver.got().len());
}

/// One line per delivery to a script of `tests/clients/`, one back.
fn judged(program: &str, script: &str, deliveries: &[Value]) -> Vec<Value> {
    let folder = holdfast_e2e::root().join("tests/clients");
    let program = if program.contains('/') { folder.join(program) } else { program.into() };
    let mut child = Command::new(&program)
        .arg(folder.join(script))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}; `cargo xtask test simulated` installs it", program.display()));
    let mut input = child.stdin.take().expect("a pipe");
    for delivery in deliveries {
        writeln!(input, "{delivery}").expect("it reads");
    }
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let lines = String::from_utf8(output.stdout).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_official_sdks_believe_our_deliveries_and_no_file_holds_the_secret() {
    let cloud = Cloud::simulated_for_webhooks(1);
    let (receiver, url) = Receiver::start();
    let (id, secret) = webhook(&cloud, &url);
    let cvm = cloud.deployed("signed", SOON);
    cloud.deleted(&cvm);
    let path = format!("/api/v1/workspace/webhooks/{id}");
    cloud.client.post(&format!("{path}/test"), None).expect("an answer").ok().expect("sent");
    until(SOON, "all is told", || Ok((receiver.got().len() == 8).then_some(()))).expect("all is told");
    let sent = receiver.got();
    let with = |secret: &str| -> Vec<Value> {
        sent.iter().map(|(headers, body)| json!({ "headers": headers, "body": body, "secret": secret })).collect()
    };
    for (program, script) in [("node", "webhook.mjs"), (".venv/bin/python", "webhook.py")] {
        let believed = judged(program, script, &with(&secret));
        let expected: Vec<Value> = sent.iter().map(|(_, body)| serde_json::from_str(body).expect("JSON")).collect();
        assert_eq!(believed.iter().map(|one| one["event"].clone()).collect::<Vec<_>>(), expected, "{script}");
        for one in judged(program, script, &with("whsec_another")) {
            assert_eq!(one["refused"], "Invalid webhook signature or expired timestamp", "{script}");
        }
    }
    // Neither log nor database holds the secret, in any spelling.
    let bare = secret.trim_start_matches("whsec_");
    let needles = [secret.as_str(), bare].map(|text| [text.as_bytes().to_vec(), hex::encode(text).into_bytes()]);
    let found = files_holding(&[cloud.folder.path().to_owned()], needles.as_flattened());
    assert_eq!(found, Vec::<std::path::PathBuf>::new());
}
