//! What the tests of the node share: a fake server that speaks the node protocol, and VMs to ask for.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_model::node::{
    DesiredPage, DesiredVm, Outcome, Phase, Register, Registered, Report, ReportAck, StreamReply, StreamRequest,
    VmReport,
};
use holdfast_model::vm::{RestartPolicy, RunState, StopMode, VmSpec};
use holdfast_node::NodeConfig;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub const TOKEN: &str = "node-token";

#[derive(Default)]
pub struct World {
    pub registered: Vec<Register>,
    /// The one session that is not answered 409.
    session: Option<Uuid>,
    revision: u64,
    desired: HashMap<Uuid, (u64, DesiredVm)>,
    pub reports: HashMap<Uuid, VmReport>,
    /// Every phase that each VM was reported in, in order, without repeats.
    pub phases: HashMap<Uuid, Vec<Phase>>,
    pub health: Option<holdfast_model::node::Health>,
    pub last_seq: u64,
    pub keys_given: u32,
}

/// What a stream sent back.
#[derive(Debug)]
pub enum Streamed {
    Reply(StreamReply),
    Data { id: u64, channel: u8, data: Vec<u8> },
}

/// Both directions of the newest stream socket.
type Socket = (mpsc::Sender<StreamRequest>, mpsc::Receiver<Streamed>);

#[derive(Clone)]
pub struct Fake {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    streams: Arc<tokio::sync::Mutex<Option<Socket>>>,
}

pub struct FakeServer {
    pub fake: Fake,
    pub url: String,
    _task: AbortOnDropHandle<()>,
}

impl FakeServer {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "off".to_owned()))
            .with_test_writer()
            .try_init();
        let fake = Fake { world: Arc::default(), changed: watch::Sender::new(0), streams: Arc::default() };
        let app = Router::new()
            .route("/node/v1/register", post(register))
            .route("/node/v1/desired", get(desired))
            .route("/node/v1/report", post(report))
            .route("/node/v1/vms/{uuid}/keys", post(keys))
            .route("/node/v1/stream", get(stream))
            .with_state(fake.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let serving = async move { axum::serve(listener, app).await.expect("serve") };
        Self { fake, url, _task: AbortOnDropHandle::new(tokio::spawn(serving)) }
    }

    pub fn config(&self, dir: &Path) -> NodeConfig {
        let mut config = NodeConfig::new(&self.url, TOKEN, dir.join("node"), dir.join("images"));
        config.restart_backoff = Duration::from_millis(50);
        config.min_free_disk_gb = 1;
        config
    }
}

impl std::ops::Deref for FakeServer {
    type Target = Fake;
    fn deref(&self) -> &Fake {
        &self.fake
    }
}

impl Fake {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no panic elsewhere")
    }

    fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn want(&self, vm: DesiredVm) {
        let mut world = self.world();
        world.revision += 1;
        let revision = world.revision;
        world.desired.insert(vm.uuid, (revision, vm));
        drop(world);
        self.touch();
    }

    /// The server loses its memory of the session.
    pub fn forget_session(&self) {
        self.world().session = None;
        self.touch();
    }

    pub fn report_of(&self, vm: Uuid) -> Option<VmReport> {
        self.world().reports.get(&vm).cloned()
    }

    /// Waits until `check` holds of the world.
    pub async fn until(&self, what: &str, limit: Duration, check: impl Fn(&World) -> bool) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                changed.borrow_and_update();
                if check(&self.world()) {
                    return;
                }
                changed.changed().await.expect("open");
            }
        };
        if tokio::time::timeout(limit, waiting).await.is_err() {
            let world = self.world();
            panic!("not in time: {what}; registered {} times; reports: {:#?}", world.registered.len(), world.reports);
        }
    }

    pub async fn until_vm(&self, what: &str, vm: Uuid, limit: Duration, check: impl Fn(&VmReport) -> bool) -> VmReport {
        self.until(what, limit, |w| w.reports.get(&vm).is_some_and(&check)).await;
        self.report_of(vm).expect("reported")
    }

    /// Waits until the node has applied `generation`.
    pub async fn applied(&self, vm: Uuid, generation: u64, phase: Phase, limit: Duration) -> VmReport {
        self.until_vm(&format!("{phase:?} in generation {generation}"), vm, limit, |r| {
            r.generation == generation && r.phase == phase && r.outcome == Outcome::Applied
        })
        .await
    }

    /// Sends requests over the node's stream, once it is open, and collects until `done`.
    pub async fn stream(&self, requests: Vec<StreamRequest>, done: impl Fn(&[Streamed]) -> bool) -> Vec<Streamed> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let mut got = Vec::new();
        let mut sent = false;
        while !done(&got) {
            assert!(tokio::time::Instant::now() < deadline, "the stream is not as awaited: {got:?}");
            let mut streams = self.streams.lock().await;
            match streams.as_mut() {
                Some((requests_out, replies)) => {
                    if !std::mem::replace(&mut sent, true) {
                        for request in &requests {
                            requests_out.send(request.clone()).await.expect("open");
                        }
                    }
                    let reply = tokio::time::timeout(Duration::from_millis(100), replies.recv()).await;
                    got.extend(reply.ok().flatten());
                }
                None => {
                    drop(streams);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        got
    }

    fn check(&self, session: Uuid) -> Result<(), StatusCode> {
        if self.world().session == Some(session) { Ok(()) } else { Err(StatusCode::CONFLICT) }
    }
}

async fn register(State(fake): State<Fake>, headers: axum::http::HeaderMap, Json(body): Json<Register>) -> Response {
    if headers.get("authorization").and_then(|v| v.to_str().ok()) != Some(&format!("Bearer {TOKEN}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut world = fake.world();
    if world.registered.last().map(|r| r.session) != Some(body.session) {
        world.last_seq = 0;
    }
    world.session = Some(body.session);
    world.registered.push(body);
    drop(world);
    fake.touch();
    Json(Registered { node: Uuid::nil(), heartbeat_s: 1 }).into_response()
}

#[derive(Deserialize)]
struct Poll {
    session: Uuid,
    since: u64,
    wait_s: u64,
}

async fn desired(State(fake): State<Fake>, Query(poll): Query<Poll>) -> Result<Json<DesiredPage>, StatusCode> {
    let mut changed = fake.changed.subscribe();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(poll.wait_s);
    loop {
        changed.borrow_and_update();
        fake.check(poll.session)?;
        {
            let world = fake.world();
            if world.revision > poll.since || poll.since == 0 && world.revision == 0 {
                let newer = |(revision, _): &&(u64, DesiredVm)| *revision > poll.since;
                let vms: Vec<DesiredVm> = world.desired.values().filter(newer).map(|(_, vm)| vm.clone()).collect();
                if !vms.is_empty() {
                    return Ok(Json(DesiredPage { revision: world.revision, vms }));
                }
            }
        }
        if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
            return Ok(Json(DesiredPage { revision: poll.since, vms: vec![] }));
        }
    }
}

async fn report(State(fake): State<Fake>, Json(report): Json<Report>) -> Result<Json<ReportAck>, StatusCode> {
    fake.check(report.session)?;
    let mut world = fake.world();
    assert!(report.seq > world.last_seq, "seq grows");
    world.last_seq = report.seq;
    world.health = Some(report.health);
    for vm in report.vms {
        let phases = world.phases.entry(vm.uuid).or_default();
        if phases.last() != Some(&vm.phase) {
            phases.push(vm.phase);
        }
        world.reports.insert(vm.uuid, vm);
    }
    drop(world);
    fake.touch();
    Ok(Json(ReportAck { seq: report.seq }))
}

async fn keys(State(fake): State<Fake>) -> Json<holdfast_model::guest::Keys> {
    fake.world().keys_given += 1;
    Json(holdfast_model::guest::Keys { env_key: ENV_KEY.to_owned(), disk_key: "5e".repeat(32) })
}

/// A key that must be found in no file.
pub const ENV_KEY: &str = "5ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4";

#[derive(Deserialize)]
struct StreamQuery {
    session: Uuid,
}

async fn stream(State(fake): State<Fake>, Query(query): Query<StreamQuery>, upgrade: WebSocketUpgrade) -> Response {
    if let Err(status) = fake.check(query.session) {
        return status.into_response();
    }
    upgrade.on_upgrade(move |socket| relay(fake, socket))
}

async fn relay(fake: Fake, mut socket: WebSocket) {
    let (requests, mut outgoing) = mpsc::channel(64);
    let (incoming, replies) = mpsc::channel(4096);
    *fake.streams.lock().await = Some((requests, replies));
    loop {
        tokio::select! {
            Some(request) = outgoing.recv() => {
                let text = serde_json::to_string(&request).expect("json");
                if socket.send(Message::Text(text.into())).await.is_err() {
                    return;
                }
            }
            frame = socket.recv() => match frame {
                Some(Ok(Message::Text(text))) => {
                    let reply = serde_json::from_str(&text).expect("a reply");
                    let _ = incoming.send(Streamed::Reply(reply)).await;
                }
                Some(Ok(Message::Binary(data))) => {
                    let id = u64::from_be_bytes(data[..8].try_into().expect("eight bytes"));
                    let _ = incoming.send(Streamed::Data { id, channel: data[8], data: data[9..].to_vec() }).await;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    }
}

/// A node that runs until it is stopped or, like a killed one, dropped.
pub struct RunningNode {
    shutdown: CancellationToken,
    task: AbortOnDropHandle<Result<(), holdfast_node::Error>>,
}

impl RunningNode {
    pub fn start(config: NodeConfig) -> Self {
        let shutdown = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(holdfast_node::run(config, shutdown.clone())));
        Self { shutdown, task }
    }

    pub async fn stop(self) -> Result<(), holdfast_node::Error> {
        self.shutdown.cancel();
        self.task.await.expect("no panic")
    }

    /// As near to kill -9 as one process allows: every task ends where it stands.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub const COMPOSE: &str = r#"{"allowed_envs":[],"docker_compose_file":"services:\n  web:\n    image: hello\n  db:\n    image: store\n","manifest_version":2,"name":"app","runner":"docker-compose"}"#;

pub fn spec(image: &str) -> VmSpec {
    let uuid = Uuid::new_v4();
    VmSpec {
        uuid,
        name: "test".into(),
        app_id: "a1".repeat(20),
        instance_id: "b2".repeat(20),
        image: image.into(),
        vcpu: 1,
        memory_mb: 512,
        disk_gb: 2,
        ports: vec![],
        compose_hash: holdfast_model::compose::sha256_hex(COMPOSE),
        app_compose: COMPOSE.into(),
        encrypted_env: None,
        user_config: None,
        restart_policy: RestartPolicy::OnFailure,
    }
}

pub fn want(spec: &VmSpec, generation: u64, run_state: RunState, boot_epoch: u64) -> DesiredVm {
    DesiredVm {
        uuid: spec.uuid,
        generation,
        run_state,
        stop: StopMode::Hard,
        boot_epoch,
        spec: (run_state != RunState::Absent).then(|| spec.clone()),
    }
}

/// The newest image that was built on this machine. Without one nothing about real guests can be said, so that fails.
pub fn real_image() -> (PathBuf, String) {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/holdfast/images"));
    let dir = std::env::var_os("HOLDFAST_IMAGE_DIR").map(PathBuf::from).or_else(home).expect("HOME");
    let images = holdfast_node::image::list(&dir).unwrap_or_default();
    let image =
        images.into_iter().next_back().expect("a guest image: run `holdfast image build` or `cargo xtask test`");
    (dir, image.name)
}

/// Processes whose command line holds `needle`.
pub fn processes_with(needle: &str) -> Vec<i32> {
    let holds = |pid: &i32| {
        let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&argv).contains(needle)
    };
    let entries = std::fs::read_dir("/proc").expect("list").flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(holds).collect()
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

/// Ends the machine of every VM that has a folder here, so that a test that failed leaves none behind.
pub fn end_machines(vms: &Path) {
    for entry in std::fs::read_dir(vms).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        processes_with(&format!("-uuid\0{name}")).into_iter().for_each(kill);
    }
}
