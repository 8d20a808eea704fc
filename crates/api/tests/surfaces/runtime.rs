//! What a CVM is doing: its machine, its network and ports, what it is told of itself, that it has no attestation, and its
//! logs. A node of the test's own answers what is asked of guests.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use holdfast_model::guest::{DiskStats, LogOptions, SystemStats};
use holdfast_model::node::{LogSource, StreamError, StreamReply, StreamRequest};
use serde_json::{Value, json};

use crate::shapes::check;
use crate::support::{COMPOSE, NEWEST, Server, V_STRING_IDS, V2025, V2026, until};

const VERSIONS: [&str; 4] = [V2025, V2026, V_STRING_IDS, NEWEST];
const NONE: (&str, &str) = ("", "");

/// Answers as the node that holds the newest socket, with what `reply` makes of each request; a request it makes nothing of
/// stays without an answer. Gives what was asked.
fn node(
    server: &Server,
    reply: impl Fn(&StreamRequest) -> Vec<Frame> + Send + 'static,
) -> Arc<Mutex<Vec<StreamRequest>>> {
    let asked = Arc::<Mutex<Vec<StreamRequest>>>::default();
    let mut socket = server.control.streams.attach(1);
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Some(request) = socket.next_request().await {
            for frame in reply(&request) {
                match frame {
                    Frame::Reply(reply) => socket.reply(reply),
                    Frame::Data(id, channel, data) => {
                        let mut frame = BytesMut::new();
                        frame.put_u64(id);
                        frame.put_u8(channel);
                        frame.put_slice(data.as_bytes());
                        assert!(socket.data(frame.freeze()));
                    }
                }
            }
            seen.lock().expect("a list").push(request);
        }
    });
    asked
}

enum Frame {
    Reply(StreamReply),
    Data(u64, u8, &'static str),
}

fn end(id: u64, error: Option<&str>) -> Frame {
    let error = error.map(|code| StreamError { code: code.to_owned(), message: "/host/path".to_owned() });
    Frame::Reply(StreamReply::End { id, error })
}

fn machine() -> SystemStats {
    SystemStats {
        os_name: "Debian GNU/Linux".into(),
        num_cpus: 2,
        total_memory: 4 << 30,
        loadavg_one: 150,
        disks: vec![DiskStats { name: "data".into(), mount_point: "/data".into(), total_size: 9, free_size: 8 }],
        ..SystemStats::default()
    }
}

const STATS: &str = "is_online:bool is_public:bool error:text? sysinfo:object? status:text? in_progress:bool
    boot_progress:text? boot_error:text?";

#[tokio::test]
async fn a_machine_is_what_its_guest_says() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    node(&server, |request| match request {
        StreamRequest::Stats { id, .. } => {
            vec![Frame::Reply(StreamReply::Stats { id: *id, stats: Box::new(machine()) })]
        }
        _ => Vec::new(),
    });
    for version in VERSIONS {
        let stats = server.at(version).get("/cvms/my-app/stats").await.expect(200);
        check(&stats, true, STATS);
        assert_eq!((&stats["is_online"], &stats["error"]), (&json!(true), &Value::Null));
        assert_eq!((&stats["status"], &stats["boot_progress"]), (&json!("running"), &json!("done")));
        let sysinfo = &stats["sysinfo"];
        check(
            sysinfo,
            true,
            "os_name:text os_version:text kernel_version:text cpu_model:text num_cpus:int total_memory:int
             available_memory:int used_memory:int free_memory:int total_swap:int used_swap:int free_swap:int uptime:int
             loadavg_one:int loadavg_five:int loadavg_fifteen:int disks:list",
        );
        assert_eq!((&sysinfo["num_cpus"], &sysinfo["loadavg_one"]), (&json!(2), &json!(150)));
        check(&sysinfo["disks"][0], true, "name:text mount_point:/data total_size:int free_size:int");
    }
    // The owner's word on who may see it is told; the owner sees it anyway.
    let hidden = json!({ "public_sysinfo": false, "public_logs": true });
    server.at(V2026).patch("/cvms/my-app/visibility", &hidden).await.expect(200);
    let stats = server.at(V2026).get("/cvms/my-app/stats").await.expect(200);
    assert_eq!((&stats["is_public"], &stats["sysinfo"]["num_cpus"]), (&json!(false), &json!(2)));
}

#[tokio::test]
async fn a_machine_that_cannot_be_asked_is_offline() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let asked = node(&server, |request| match request {
        StreamRequest::Stats { id, .. } => vec![end(*id, Some("agent_old"))],
        _ => Vec::new(),
    });
    let offline = async |word: &str| {
        let stats = server.at(V2026).get("/cvms/my-app/stats").await.expect(200);
        check(&stats, true, STATS);
        assert_eq!((&stats["is_online"], &stats["sysinfo"]), (&json!(false), &Value::Null));
        let error = stats["error"].as_str().expect("words").to_owned();
        assert!(error.contains(word) && !error.contains("/host"), "{error}");
    };
    offline("older version").await;
    // Nobody is asked who cannot answer.
    let pause = "UPDATE vm_observed SET report = json_set(report, '$.paused', 'disk_full')";
    server.sql(pause).await;
    offline("disk of its node is full").await;
    let state = server.at(V2026).get("/cvms/my-app/state").await.expect(200);
    let told = state["boot_error"].as_str().expect("words");
    assert!(told.starts_with("paused: ") && told.contains("full"), "{told}");
    assert_eq!((&state["status"], &state["boot_progress"]), (&json!("running"), &json!("done")));
    server.sql("UPDATE vm_observed SET report = json_remove(report, '$.paused')").await;
    // What does not answer as it was asked is no answer.
    node(&server, |request| match request {
        StreamRequest::Stats { id, .. } => {
            vec![Frame::Reply(StreamReply::Containers { id: *id, containers: Vec::new() })]
        }
        _ => Vec::new(),
    });
    offline("went wrong").await;
    server.at(V2026).post_bytes("/cvms/my-app/stop", Vec::new()).await.expect(200);
    server.until_status("my-app", "stopped").await;
    offline("The CVM is stopped.").await;
    assert_eq!(asked.lock().expect("a list").len(), 1, "a stopped CVM is asked nothing");
    let network = server.at(V2026).get("/cvms/my-app/network").await.expect(200);
    assert_eq!((&network["is_online"], &network["error"]), (&json!(false), &json!("The CVM is stopped.")));
    assert!(network["public_urls"][0]["app"].is_string());
}

async fn newest_operation(server: &Server) -> Value {
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?limit=1", NONE).await.expect(200);
    let id = page["items"][0]["id"].as_str().expect("an id").to_owned();
    server.at(V2026).any("GET", &format!("/holdfast/v1/operations/{id}"), NONE).await.expect(200)
}

#[tokio::test]
async fn the_network_is_the_published_ports() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let urls = server.at(V2025).get("/cvms/my-app").await.expect(200)["public_urls"].clone();
    for version in VERSIONS {
        let network = server.at(version).get("/cvms/my-app/network").await.expect(200);
        let shape =
            "is_online:bool is_public:bool error:text? internal_ip:null latest_handshake:null public_urls:list?";
        check(&network, true, shape);
        assert_eq!((&network["is_online"], &network["public_urls"]), (&json!(true), &urls));
        let config = server.at(version).get("/cvms/my-app/network-config").await.expect(200);
        check(&config, true, "gateway_urls:list kms_urls:list ports:list");
        check(&config["ports"][0], true, "host_address:text host_port:int protocol:tcp vm_port:int");
        assert!(urls[0]["app"].as_str().expect("a URL").ends_with(&config["ports"][0]["host_port"].to_string()));
    }
    let patch = async |body: Value| server.at(V2026).patch("/cvms/my-app/network-config", &body).await;
    for (field, word) in [("gateway_urls", "gateway"), ("kms_urls", "KMS")] {
        let refused = patch(json!({ field: ["https://gateway.example"], "restart": true })).await.expect(400);
        assert_eq!(refused["error_code"], "ERR-02-009");
        assert!(refused["message"].as_str().expect("words").contains(word), "{refused}");
    }
    // Nothing to change is an operation that is over, and the CVM stays up; a restart is one.
    let same = patch(json!({ "gateway_urls": [], "kms_urls": null })).await.expect(200);
    assert_eq!(same, server.at(V2026).get("/cvms/my-app/network-config").await.expect(200));
    let operation = newest_operation(&server).await;
    assert_eq!((&operation["status"], &operation["changes"]), (&json!("done"), &json!({})));
    server.held.store(true, Ordering::Relaxed);
    patch(json!({ "restart": true })).await.expect(200);
    assert_eq!(newest_operation(&server).await["operation_type"], "restart");
    assert_eq!(server.at(V2026).get("/cvms/my-app").await.expect(200)["status"], "restarting");
    assert_eq!(patch(json!({ "restart": true })).await.status, 409);
    server.held.store(false, Ordering::Relaxed);
    server.until_status("my-app", "running").await;
}

async fn put_ports(server: &Server, body: Value) -> crate::support::Answer {
    let request = server.at(V2026).request("PUT", "/cvms/my-app/ports").body(Body::from(body.to_string()));
    server.send(request.expect("a request")).await
}

fn vm_ports(list: &Value) -> Vec<i64> {
    list.as_array().expect("ports").iter().map(|port| port["vm_port"].as_i64().expect("a port")).collect()
}

async fn is_over(server: &Server) -> Value {
    until("it is over", async || {
        ["done", "failed", "cancelled"].contains(&newest_operation(server).await["status"].as_str().unwrap_or_default())
    })
    .await;
    newest_operation(server).await
}

#[tokio::test]
async fn another_set_of_ports_is_one_operation() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let first = server.at(V2026).get("/cvms/my-app/ports").await.expect(200);
    check(&first[0], true, "id:pm_ host_port:int vm_port:int protocol:tcp host_address:text");
    let before = server.at(V2026).get("/cvms/my-app").await.expect(200);

    let body = json!({ "ports": [{ "vm_port": 8080 }, { "vm_port": 22.0, "protocol": "tcp" }, { "vm_port": 22 }] });
    let both = put_ports(&server, body).await.expect(200);
    assert_eq!(vm_ports(&both), [22, 8080]);
    assert_eq!(both[1], first[0], "a port that stays keeps its place");
    let done = is_over(&server).await;
    assert_eq!((&done["operation_type"], &done["status"]), (&json!("ports_update"), &json!("done")), "{done:#}");
    assert_eq!(done["changes"].as_object().expect("a diff").len(), 1, "{done:#}");
    assert_eq!(done["changes"]["ports"]["to"].as_array().map(Vec::len), Some(2));
    let after = server.at(V2026).get("/cvms/my-app").await.expect(200);
    assert_eq!(after["compose_hash"], before["compose_hash"]);
    assert_eq!(after["endpoints"].as_array().map(Vec::len), Some(2));

    // The choice outlives the compose file that it was made on.
    let published = |port: &str| COMPOSE.replace("8080:80", port);
    let update = async |text: String| {
        server.at(V2026).patch_bytes("/cvms/my-app/docker-compose", text.into()).await.expect(202);
        is_over(&server).await
    };
    assert_eq!(update(published("9000:80")).await["operation_type"], "compose_update");
    let ports = async || server.at(V2026).get("/cvms/my-app/ports").await.expect(200);
    assert_eq!(vm_ports(&ports().await), [22, 9000]);
    put_ports(&server, json!({ "ports": [] })).await.expect(200);
    is_over(&server).await;
    assert_eq!(vm_ports(&ports().await), [0i64; 0]);
    update(published("9001:80")).await;
    assert_eq!(vm_ports(&ports().await), [9001], "9000 was hidden, and nothing else");
    put_ports(&server, json!({ "ports": [{ "vm_port": 22 }] })).await.expect(200);
    is_over(&server).await;
    // The compose file's own set again: from then on it alone says.
    put_ports(&server, json!({ "ports": [{ "vm_port": 9001 }] })).await.expect(200);
    is_over(&server).await;
    update(published("9002:80")).await;
    assert_eq!(vm_ports(&ports().await), [9002]);
    // What is there already is nothing to do.
    put_ports(&server, json!({ "ports": [{ "vm_port": 9002 }] })).await.expect(200);
    let same = newest_operation(&server).await;
    assert_eq!((&same["status"], &same["changes"]), (&json!("done"), &json!({})), "{same:#}");

    // Taken back, it leaves the ports as they were.
    server.held.store(true, Ordering::Relaxed);
    let asked = put_ports(&server, json!({ "ports": [{ "vm_port": 22 }] })).await.expect(200);
    assert_eq!(vm_ports(&asked), [22]);
    assert_eq!(put_ports(&server, json!({ "ports": [] })).await.status, 409);
    server.at(V2026).post("/cvms/my-app/operations/cancel", &json!({})).await.expect(200);
    server.held.store(false, Ordering::Relaxed);
    assert_eq!(is_over(&server).await["status"], "cancelled");
    assert_eq!(vm_ports(&ports().await), [9002]);
    let rows = server.tables().await.lines().filter(|line| line.starts_with("vm_port:")).count();
    assert_eq!(rows, 1, "what is not published is given back");
}

#[tokio::test]
async fn ports_that_cannot_be() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let refused = put_ports(&server, json!({ "ports": [{ "vm_port": 53, "protocol": "udp" }] })).await.expect(400);
    assert_eq!(refused["error_code"], "ERR-02-009");
    for port in [json!({ "vm_port": 0 }), json!({ "vm_port": 65536 }), json!({ "vm_port": 1, "protocol": "sctp" })] {
        let refused = put_ports(&server, json!({ "ports": [{ "vm_port": 80 }, port] })).await.expect(422);
        let loc = refused["detail"][0]["loc"].as_array().expect("a place");
        assert_eq!(loc[..3], ["body", "ports", "1"], "{refused}");
    }
    assert_eq!(put_ports(&server, json!({})).await.status, 422);
    let all: Vec<_> = (1..=2000).map(|port| json!({ "vm_port": port })).collect();
    assert_eq!(put_ports(&server, json!({ "ports": all })).await.expect(400)["error_code"], "ERR-02-002");
    assert_eq!(vm_ports(&server.at(V2026).get("/cvms/my-app/ports").await.expect(200)), [8080]);
}

#[tokio::test]
async fn what_a_guest_is_told_of_itself() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let config = async || server.at(V2026).get("/cvms/my-app/user_config").await.expect(200);
    let named = config().await;
    check(&named, true, "hostname:text? ssh_authorized_keys:list default_gateway_domain:text?");
    assert_eq!(named, json!({ "hostname": "my-app", "ssh_authorized_keys": [], "default_gateway_domain": null }));
    let text = json!({ "hostname": "Db-1", "ssh_authorized_keys": ["ssh-ed25519 AAAA me"], "other": 1 }).to_string();
    server.at(V2026).patch("/cvms/my-app", &json!({ "user_config": text })).await.expect(202);
    is_over(&server).await;
    assert_eq!(
        (&config().await["hostname"], &config().await["ssh_authorized_keys"][0]),
        (&json!("db-1"), &json!("ssh-ed25519 AAAA me"))
    );
    server.at(V2026).patch("/cvms/my-app", &json!({ "user_config": "not JSON" })).await.expect(202);
    is_over(&server).await;
    assert_eq!(config().await, named);
}

#[tokio::test]
async fn without_a_tee_there_is_no_attestation() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    for (version, id) in VERSIONS
        .iter()
        .zip(["my-app".to_owned(), format!("app_{}", vm["app_id"].as_str().expect("an id"))].iter().cycle())
    {
        let answer = server.at(version).get(&format!("/cvms/{id}/attestation")).await.expect(200);
        check(
            &answer,
            true,
            "name:my-app is_online:bool is_public:bool error:text app_certificates:null tcb_info:null compose_file:text?",
        );
        assert!(answer["error"].as_str().expect("words").contains("without a TEE"));
        let compose = answer["compose_file"].as_str().expect("app-compose.json");
        let hash = server.at(V2026).get("/cvms/my-app").await.expect(200)["compose_hash"].clone();
        assert_eq!(hash, json!(holdfast_model::compose::sha256_hex(compose)));
    }
}

/// The path and query of an absolute URL of ours.
fn local(url: &Value) -> String {
    url.as_str().and_then(|url| url.strip_prefix("https://cloud.example")).expect("a URL of this server").to_owned()
}

fn options(asked: &Mutex<Vec<StreamRequest>>) -> (LogSource, LogOptions) {
    let asked = asked.lock().expect("a list");
    let last = asked.iter().rev().find_map(|request| match request {
        StreamRequest::Logs { source, options, .. } => Some((source.clone(), options.clone())),
        _ => None,
    });
    last.expect("a log was asked for")
}

const SAID: &str = "\u{1b}[32mgreen\u{1b}[0m\n";

#[tokio::test]
async fn logs_with_every_option_of_the_command_line() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let asked = node(&server, |request| match request {
        StreamRequest::Logs { id, source: LogSource::Container(name), .. } if name == "none" => {
            vec![end(*id, Some("no_such_container"))]
        }
        StreamRequest::Logs { id, .. } => {
            vec![Frame::Data(*id, 1, SAID), Frame::Data(*id, 2, "oops\n"), end(*id, None)]
        }
        _ => Vec::new(),
    });
    let get = async |url: &str| server.without_key().any("GET", url, NONE).await;
    let basic = server.at(V2025).get("/cvms/my-app").await.expect(200);
    let urls = server.at(V2026).get("/cvms/my-app").await.expect(200)["logs"].clone();
    for (channel, source) in
        [("serial", LogSource::Serial), ("stdout", LogSource::Stdout), ("stderr", LogSource::Stderr)]
    {
        for url in [local(&urls[channel]), format!("{}&ch={channel}", local(&basic["syslog_endpoint"]))] {
            let answer = get(&url).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "green\noops\n"), "{url}");
            assert!(answer.headers["content-type"].to_str().expect("text").starts_with("text/plain"));
            assert_eq!(options(&asked).0, source);
        }
    }
    let serial = local(&urls["serial"]);
    let query = serial.split_once('?').expect("a query").1;
    let container = format!("{}/app-web-1?{query}", local(&urls["container_log_base"]));
    // As the clients append them: valueless switches, `lines` beside `tail`.
    let all = "since=10m&until=2026-01-01T00:00:00Z&text&bare&tail=7&lines=9&timestamps&ansi";
    let answer = get(&format!("{container}&{all}")).await;
    assert_eq!(answer.text(), format!("{SAID}oops\n"));
    let expected = LogOptions {
        since: Some("10m".into()),
        until: Some("2026-01-01T00:00:00Z".into()),
        tail: Some(7),
        follow: false,
        timestamps: true,
    };
    assert_eq!(options(&asked), (LogSource::Container("app-web-1".into()), expected));
    for (extra, tail) in [("", Some(10_000)), ("&lines=3", Some(3)), ("&tail=all", None), ("&tail=0", Some(0))] {
        get(&format!("{container}{extra}")).await;
        assert_eq!(options(&asked).1, LogOptions { tail, ..LogOptions::default() }, "{extra}");
    }
    // Without `text`: one object a line, whose message is always base64.
    let line = |channel: &str, text: &str| json!({ "channel": channel, "message": STANDARD.encode(text) }).to_string();
    for (extra, green) in [("", "green\n"), ("&ansi", SAID)] {
        let answer = get(&format!("{container}{extra}")).await;
        assert_eq!(answer.text(), format!("{}\n{}\n", line("stdout", green), line("stderr", "oops\n")));
    }
    for wrong in ["since=yesterday", "until=-1", "tail=-1", "tail=x", "lines=1.5"] {
        assert_eq!(get(&format!("{container}&{wrong}")).await.status, 422, "{wrong}");
    }
    assert_eq!(get(&format!("{serial}&ch=other")).await.status, 422);
    assert_eq!(get(&container.replace("app-web-1", "none")).await.status, 404);
    assert_eq!(get(&container.replace("token=", "token=x")).await.status, 401);
}

async fn piece(body: &mut axum::body::BodyDataStream) -> Option<Bytes> {
    let next = tokio::time::timeout(std::time::Duration::from_secs(10), body.next());
    next.await.expect("in time").map(|piece| piece.expect("a piece"))
}

#[tokio::test]
async fn a_followed_log_ends_with_its_reader_or_with_its_cvm() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let asked = node(&server, |request| match request {
        StreamRequest::Logs { id, .. } => vec![Frame::Data(*id, 1, "one\n")],
        // Whoever read it has gone on: the CVM ends.
        StreamRequest::Credit { id, bytes: 4 } => vec![Frame::Data(*id, 1, "two, the last\n"), end(*id, None)],
        _ => Vec::new(),
    });
    let serial = local(&server.at(V2026).get("/cvms/my-app").await.expect(200)["logs"]["serial"]);
    let follow = async || {
        let request = axum::http::Request::get(format!("{serial}&follow")).body(Body::empty()).expect("a request");
        let response = server.open(request).await;
        assert_eq!(response.status(), 200);
        response.into_body().into_data_stream()
    };
    let mut body = follow().await;
    assert!(options(&asked).1.follow);
    assert_eq!(piece(&mut body).await.as_deref(), Some(&b"one\n"[..]));
    assert_eq!(piece(&mut body).await.as_deref(), Some(&b"two, the last\n"[..]));
    assert_eq!(piece(&mut body).await, None);

    let asked = node(&server, |request| match request {
        StreamRequest::Logs { id, .. } => vec![Frame::Data(*id, 1, "one\n")],
        _ => Vec::new(),
    });
    let mut body = follow().await;
    assert_eq!(piece(&mut body).await.as_deref(), Some(&b"one\n"[..]));
    drop(body);
    until("the node is told that nobody reads", async || {
        asked.lock().expect("a list").iter().any(|request| matches!(request, StreamRequest::Close { .. }))
    })
    .await;
    // A node that goes away ends what it was sending, with a word.
    let mut body = follow().await;
    piece(&mut body).await;
    server.control.streams.detach(1);
    assert_eq!(piece(&mut body).await, None);
}
