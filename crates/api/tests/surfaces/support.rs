//! A server in this process: its router, its worker, and a node that obeys the real protocol without VMs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use holdfast_api::App;
use holdfast_control::loops::worker;
use holdfast_control::{Clock, Control, Settings, SystemClock, setup};
use holdfast_model::Timestamp;
use holdfast_model::guest::BootError;
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{
    Accelerator, Capacity, DesiredVm, GUEST_STAYS, Health, Outcome, Phase, Register, Report, StreamReply,
    StreamRequest, VmReport,
};
use holdfast_model::vm::{RunState, StopMode};
use holdfast_store::Store;
use holdfast_store::members::member_put;
use holdfast_store::tenancy::{api_key_create, workspace_create};
use holdfast_store::users::user_create;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use crate::access::guard;
use crate::contract;
use crate::github::Github;

pub const V2025: &str = "2025-10-28";
pub const V2026: &str = "2026-01-21";
pub const V_STRING_IDS: &str = "2026-05-22";
pub const NEWEST: &str = "2026-06-23";

pub const COMPOSE: &str = "services:\n  web:\n    image: hello\n    ports: [\"8080:80\"]\n";

/// A server, the key of its administrator, and the switch that holds its node back.
pub struct Server {
    pub control: Control,
    router: axum::Router,
    pub key: String,
    /// What it takes for GitHub.
    pub github: Github,
    /// While true the node does nothing, so that operations stay in progress.
    pub held: Arc<AtomicBool>,
    /// While true its guests do not power off when they are only asked to.
    pub deaf: Arc<AtomicBool>,
    /// The next app that the node starts does not come up.
    pub fails_boot: Arc<AtomicBool>,
    /// The server has ended the node's session.
    ended: Arc<AtomicBool>,
    stop: CancellationToken,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An answer, read whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The JSON of an answer that must have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self.json()
    }
}

/// A request in the making.
pub struct Ask<'a> {
    server: &'a Server,
    key: Option<&'a str>,
    version: Option<&'a str>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    /// The same with what an operator has set.
    pub async fn start_with(settings: Settings) -> Self {
        Self::start_at(settings, Arc::new(SystemClock)).await
    }

    /// The same with another clock.
    pub async fn start_at(settings: Settings, clock: Arc<dyn Clock>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).await.expect("a store");
        let master = setup::master_key(&folder.path().join("master.key"), true).expect("a master key");
        let keys = setup::keys(&store, &master).await.expect("secrets");
        let key_file = folder.path().join("admin.key");
        setup::first_admin(&store, &SystemClock, &key_file).await.expect("an administrator");
        let token = setup::node_token(&store, &SystemClock, "test").await.expect("a node token");
        let github = Github::start().await;
        let settings = Settings {
            public_url: "https://cloud.example".to_owned(),
            github_url: github.url.clone(),
            github_patience: Duration::from_secs(3),
            ..settings
        };
        let control = Control::new(store, keys, settings, clock);
        let token_id = control.authenticate_node(&token).await.expect("the token is known");
        let (held, stop) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let node = Node::register(control.clone(), token_id, held.clone()).await;
        tokio::spawn(holdfast_control::events::run(control.clone(), stop.clone()));
        tokio::spawn(worker::run(control.clone(), "test".to_owned(), stop.clone()));
        let (ended, deaf, fails_boot) = (node.ended.clone(), node.deaf.clone(), node.fails_boot.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(node.run()));
        let router = holdfast_api::router(App { control: control.clone(), needs_node: true });
        let key = std::fs::read_to_string(key_file).expect("the key file");
        Self { control, router, key: key.trim().to_owned(), github, held, deaf, fails_boot, ended, stop, folder }
    }

    /// A request with the administrator's key.
    pub fn at<'a>(&'a self, version: &'a str) -> Ask<'a> {
        Ask { server: self, key: Some(&self.key), version: Some(version) }
    }

    pub fn with_key<'a>(&'a self, key: &'a str) -> Ask<'a> {
        Ask { server: self, key: Some(key), version: None }
    }

    pub fn without_key(&self) -> Ask<'_> {
        Ask { server: self, key: None, version: None }
    }

    /// Sends a request whose answer is read piece by piece.
    pub async fn open(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.expect("the router answers")
    }

    /// Sends a request and reads its answer whole. One of the Phala surface is held to its contract, and any to have
    /// asked who is calling and to have left an audit row of what it changed.
    pub async fn send(&self, mut request: Request<Body>) -> Answer {
        let asked = contract::asked(&request, &self.key);
        let watched = guard::watch(&mut request);
        let response = self.open(request).await;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body").to_vec();
        let answer = Answer { status, headers, bytes };
        if let Some(asked) = asked {
            contract::hold(&asked, &answer);
        }
        if let Some(watched) = watched {
            guard::hold(self, &watched, &answer).await;
        }
        answer
    }

    /// A second workspace with one member in this role, and their key.
    pub async fn stranger(&self, role: &str) -> String {
        let mut tx = self.control.store.begin().await.expect("a transaction");
        let address = "11".repeat(20);
        let owner = workspace_create(&mut tx, "stranger", role, "elsewhere", &address, self.control.now()).await;
        let key = "phak_stranger";
        let hash = holdfast_control::identity::secret_hash(key);
        api_key_create(&mut tx, owner.expect("a workspace"), "key", "phak_str", &hash, V2026, self.control.now())
            .await
            .expect("a key");
        holdfast_store::commit(tx).await.expect("a commit");
        key.to_owned()
    }

    /// A further user with this role in a workspace, and their key for it.
    pub async fn member(&self, workspace: i64, name: &str, role: &str) -> String {
        let (mut tx, now) = (self.control.store.begin().await.expect("a transaction"), self.control.now());
        let user = user_create(&mut tx, name, &format!("{name}@example.com"), "user", now).await.expect("a user");
        member_put(&mut tx, workspace, user, role, now).await.expect("a member");
        let key = format!("phak_{name}");
        let hash = holdfast_control::identity::secret_hash(&key);
        api_key_create(&mut tx, (user, workspace), "key", "phak_mem", &hash, V2026, now).await.expect("a key");
        holdfast_store::commit(tx).await.expect("a commit");
        key
    }

    /// A request of the administrator to a path below `/holdfast/v1`, with a body unless it is null.
    pub async fn holdfast(&self, method: &str, path: &str, body: &Value) -> Answer {
        let request = self.at(NEWEST).request(method, "/").uri(format!("/holdfast/v1{path}"));
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).expect("a request")).await
    }

    /// Writes to the database behind the server's back.
    pub async fn sql(&self, statement: &'static str) {
        self.execute(statement).await;
    }

    /// The same with statements that were put together.
    pub async fn execute(&self, statements: &str) {
        let statements = sqlx::AssertSqlSafe(statements.to_owned());
        sqlx::raw_sql(statements).execute(&mut self.connection().await).await.expect("statements");
    }

    /// A number that the database has.
    pub async fn number(&self, query: &str) -> i64 {
        let query = sqlx::AssertSqlSafe(query.to_owned());
        sqlx::query_scalar(query).fetch_one(&mut self.connection().await).await.expect("a number")
    }

    /// A text that the database has.
    pub async fn text(&self, query: &str) -> String {
        let query = sqlx::AssertSqlSafe(query.to_owned());
        sqlx::query_scalar(query).fetch_one(&mut self.connection().await).await.expect("a text")
    }

    /// How many audit rows have this value in this column.
    pub async fn audited(&self, column: &str, value: &str) -> i64 {
        let query = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM audit_log WHERE {column} = $1"));
        sqlx::query_scalar(query).bind(value).fetch_one(&mut self.connection().await).await.expect("a number")
    }

    async fn connection(&self) -> sqlx::sqlite::SqliteConnection {
        use sqlx::ConnectOptions;
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.data_folder().join("holdfast.db"))
            .busy_timeout(Duration::from_secs(5));
        options.connect().await.expect("a connection")
    }

    /// The rows of every table that has a workspace, those of this one. What requests leave behind whether they were
    /// refused or not, and what a node reports by itself, is left out.
    pub async fn tables_of_workspace(&self, workspace: i64) -> String {
        let mut text = String::new();
        for (table, columns) in self.workspace_tables().await {
            let columns: Vec<_> = columns.iter().map(|c| format!("COALESCE(CAST({c} AS TEXT), '')")).collect();
            let query = format!("SELECT {} FROM {table} WHERE workspace_id = $1", columns.join(" || ' | ' || "));
            let query = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(workspace);
            let rows: Vec<String> = query.fetch_all(&mut self.connection().await).await.expect("rows");
            rows.iter().for_each(|row| text.push_str(&format!("{table}: {row}\n")));
        }
        text
    }

    /// Every id and address in the rows of a workspace that is long enough to be nobody else's.
    pub async fn names_of_workspace(&self, workspace: i64) -> std::collections::BTreeSet<String> {
        let mut names = std::collections::BTreeSet::new();
        for (table, columns) in self.workspace_tables().await {
            let telling = ["uuid", "app_id", "instance_id", "address", "compose_hash", "encrypted_env"];
            for column in columns.iter().filter(|column| telling.contains(&column.as_str())) {
                let query = format!(
                    "SELECT {column} FROM {table} WHERE workspace_id = $1 AND LENGTH({column}) > 30 AND {column} <> ''"
                );
                let query = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(workspace);
                let found: Vec<String> = query.fetch_all(&mut self.connection().await).await.expect("names");
                names.extend(found);
            }
        }
        names
    }

    async fn workspace_tables(&self) -> Vec<(String, Vec<String>)> {
        // Requests leave these two behind whatever became of them.
        let query = "SELECT m.name, p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p
            WHERE m.type = 'table' AND m.name NOT IN ('audit_log', 'idempotency_key')
              AND EXISTS (SELECT 1 FROM pragma_table_info(m.name) w WHERE w.name = 'workspace_id') ORDER BY m.name, p.cid";
        let rows: Vec<(String, String)> =
            sqlx::query_as(query).fetch_all(&mut self.connection().await).await.expect("columns");
        let mut tables: Vec<(String, Vec<String>)> = Vec::new();
        for (table, column) in rows {
            match tables.last_mut().filter(|(last, _)| *last == table) {
                Some((_, columns)) => columns.push(column),
                None => tables.push((table, vec![column])),
            }
        }
        tables
    }

    /// Everything in the database, as text: every row of every table, counters of its ids among them. Left out is what a
    /// report of the node changes whenever it comes.
    pub async fn tables(&self) -> String {
        use sqlx::{AssertSqlSafe, Column, ConnectOptions, Row};
        const OF_REPORTS: [&str; 3] = ["node.report_seq", "node.last_seen_at", "vm_observed.updated_at"];
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.data_folder().join("holdfast.db"));
        let mut connection = options.read_only(true).connect().await.expect("a connection");
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
                .fetch_all(&mut connection)
                .await
                .expect("names");
        let mut text = String::new();
        for name in names {
            let select = AssertSqlSafe(format!("SELECT * FROM \"{name}\" ORDER BY rowid"));
            for row in sqlx::query(select).fetch_all(&mut connection).await.expect("rows") {
                let value = |column| row.try_get_unchecked::<Option<String>, _>(column);
                let told = |c: &usize| !OF_REPORTS.contains(&format!("{name}.{}", row.columns()[*c].name()).as_str());
                let values: Vec<_> =
                    (0..row.len()).filter(told).map(|c| value(c).ok().flatten().unwrap_or_default()).collect();
                text.push_str(&format!("{name}: {}\n", values.join(" | ")));
            }
        }
        text
    }

    pub fn node_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn data_folder(&self) -> &Path {
        self.folder.path()
    }

    /// Provisions and commits an app, and returns the commit's answer.
    pub async fn deploy(&self, name: &str) -> Value {
        let provisioned = self.at(V2025).post("/cvms/provision", &provision(name)).await.expect(200);
        let commit = json!({ "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"] });
        self.at(V2025).post("/cvms", &commit).await.expect(200)
    }

    /// Deploys and waits until the app is up.
    pub async fn deploy_running(&self, name: &str) -> Value {
        let vm = self.deploy(name).await;
        self.until_status(name, "running").await;
        vm
    }

    pub async fn until_status(&self, id: &str, status: &str) {
        let path = format!("/cvms/{id}");
        until(&format!("{id} is {status}"), async || {
            let cvm = self.at(V2026).get(&path).await.expect(200);
            cvm["status"] == status && cvm["in_progress"] == false
        })
        .await;
    }
}

/// The body that the CLI sends to provision.
pub fn provision(name: &str) -> Value {
    json!({
        "name": name,
        "compose_file": { "name": "", "docker_compose_file": COMPOSE, "public_logs": true, "public_sysinfo": true },
        "listed": false, "kms": "PHALA", "instance_type": "tdx.small",
    })
}

/// Waits for a condition.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Ask<'_> {
    /// A request to a path of any surface, with one more header if it has a value.
    pub async fn any(&self, method: &str, path: &str, (name, value): (&str, &str)) -> Answer {
        let mut request = self.request(method, "/").uri(path);
        if !value.is_empty() {
            request = request.header(name, value);
        }
        self.server.send(request.body(Body::empty()).expect("a request")).await
    }

    pub fn request(&self, method: &str, path: &str) -> axum::http::request::Builder {
        let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        if let Some(key) = self.key {
            request = request.header("x-api-key", key);
        }
        if let Some(version) = self.version {
            request = request.header("x-phala-version", version);
        }
        // As the clients do, on every request.
        request.header(header::CONTENT_TYPE, "application/json")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.server.send(self.request("GET", path).body(Body::empty()).expect("a request")).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.server.send(self.request("PUT", path).body(Body::from(body.to_string())).expect("a request")).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.server.send(self.request("DELETE", path).body(Body::empty()).expect("a request")).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.patch_bytes(path, body.to_string().into_bytes()).await
    }

    pub async fn patch_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        self.server.send(self.request("PATCH", path).body(Body::from(body)).expect("a request")).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        self.server.send(self.request("POST", path).body(Body::from(body)).expect("a request")).await
    }
}

/// A node without VMs: it reports every desired state as reached.
struct Node {
    control: Control,
    token: i64,
    session: Uuid,
    seq: u64,
    held: Arc<AtomicBool>,
    deaf: Arc<AtomicBool>,
    fails_boot: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    images: Vec<ImageInfo>,
    vms: HashMap<Uuid, VmReport>,
}

impl Node {
    async fn register(control: Control, token: i64, held: Arc<AtomicBool>) -> Self {
        let image = ImageInfo {
            name: "holdfast-1.2.3".to_owned(),
            version: "1.2.3".to_owned(),
            is_dev: false,
            os_image_hash: Some("ab".repeat(32)),
        };
        let hello = Register {
            session: Uuid::new_v4(),
            name: "test-node".to_owned(),
            region: Some("lab".to_owned()),
            version: "0.1.0".to_owned(),
            hypervisor: "simulated".to_owned(),
            hypervisor_version: "1".to_owned(),
            accelerator: Accelerator::Simulated,
            tee: false,
            boot_id: Uuid::new_v4().to_string(),
            capacity: Capacity { vcpu: 8, memory_mb: 64 * 1024, disk_gb: 1000, slots: 50 },
            publish_address: "0.0.0.0".to_owned(),
            port_range: (30000, 30999),
            images: vec![image.clone()],
        };
        control.node_register(token, &hello).await.expect("a registered node");
        let mut node = Self {
            control,
            token,
            session: hello.session,
            seq: 0,
            held,
            deaf: Arc::default(),
            fails_boot: Arc::default(),
            ended: Arc::default(),
            images: vec![image],
            vms: HashMap::new(),
        };
        node.report(Vec::new()).await;
        node
    }

    async fn run(mut self) {
        tokio::spawn(answer_streams(self.control.clone()));
        let mut since = 0;
        loop {
            let wait = Duration::from_secs(30);
            let page = match self.control.node_desired(self.token, self.session, since, wait).await {
                Err(error) if error.code == holdfast_model::error::Code::SessionStale => {
                    self.ended.store(true, Ordering::Relaxed);
                    return;
                }
                page => page.expect("desired state"),
            };
            while self.held.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            since = page.revision;
            let reports: Vec<VmReport> = page.vms.iter().map(|vm| self.reached(vm)).collect();
            self.report(reports).await;
        }
    }

    fn reached(&mut self, vm: &DesiredVm) -> VmReport {
        let phase = match vm.run_state {
            RunState::Running => Phase::Running,
            RunState::Stopped => Phase::Stopped,
            RunState::Absent => Phase::Absent,
        };
        let stays = matches!(vm.stop, StopMode::Asked { .. }) && self.deaf.load(Ordering::Relaxed);
        if phase == Phase::Stopped
            && stays
            && let Some(before) = self.vms.get(&vm.uuid)
        {
            let (code, message) = (GUEST_STAYS.to_owned(), "asked in vain".to_owned());
            let outcome = Outcome::Failed { code, message, retryable: false };
            return VmReport { generation: vm.generation, outcome, phase: Phase::Stopping, ..before.clone() };
        }
        let up = phase == Phase::Running;
        let fails = up && self.fails_boot.swap(false, Ordering::Relaxed);
        let boot_error = fails.then(|| BootError { step: "app".to_owned(), message: "no such image".to_owned() });
        let report = VmReport {
            uuid: vm.uuid,
            generation: vm.generation,
            outcome: Outcome::Applied,
            phase,
            boot_epoch: vm.boot_epoch,
            restarts: 0,
            agent: up,
            boot_progress: up.then(|| "done".to_owned()),
            boot_error,
            app_revision: if up && !fails { vm.generation } else { 0 },
            shutdown_progress: None,
            started_at: up.then(|| Timestamp(self.control.now().micros() - 63_000_000)),
            exited_at: None,
            exit_reason: None,
            will_restart: false,
            paused: None,
        };
        self.vms.insert(vm.uuid, report.clone());
        report
    }

    async fn report(&mut self, vms: Vec<VmReport>) {
        self.seq += 1;
        let report = Report {
            session: self.session,
            seq: self.seq,
            health: Health { disk_free_gb: 900, ready: true, reason: None },
            images: self.images.clone(),
            vms,
        };
        self.control.node_report(self.token, &report).await.expect("an acknowledged report");
    }
}

/// The node's socket: one container in every VM.
async fn answer_streams(control: Control) {
    let mut socket = control.streams.attach(1);
    while let Some(request) = socket.next_request().await {
        if let StreamRequest::Stats { id, .. } = request {
            let disk = holdfast_model::guest::DiskStats { mount_point: "/data".to_owned(), ..Default::default() };
            let stats = holdfast_model::guest::SystemStats { disks: vec![disk], ..Default::default() };
            socket.reply(StreamReply::Stats { id, stats: Box::new(stats) });
        }
        if let StreamRequest::Containers { id, .. } = request {
            let container = holdfast_model::guest::Container {
                id: "c0ffee".to_owned(),
                names: vec!["/app-web-1".to_owned()],
                image: "hello".to_owned(),
                image_id: "sha256:1".to_owned(),
                command: "serve".to_owned(),
                created: 1_760_000_000,
                state: "running".to_owned(),
                status: "Up 3 minutes".to_owned(),
            };
            socket.reply(StreamReply::Containers { id, containers: vec![container] });
        }
    }
}
