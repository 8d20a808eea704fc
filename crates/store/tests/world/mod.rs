//! A database with a workspace, a node and, on request, VMs.

use holdfast_engine::ops;
use holdfast_engine::revision::{Shutdown, Visibility};
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{Accelerator, Capacity, Outcome, Phase, Register, VmReport};
use holdfast_model::vm::{PortMapping, RestartPolicy, VmStatus};
use holdfast_store::accept::{IfBusy, VmSubmit, vm_operation_accept};
use holdfast_store::audit::RequestInfo;
use holdfast_store::tenancy::Principal;
use holdfast_store::vms::NewVm;
use holdfast_store::{Store, Tx, commit, nodes, provisions, tenancy, vms};
use tempfile::TempDir;
use uuid::Uuid;

pub const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

pub struct World {
    pub store: Store,
    pub who: Principal,
    pub node: i64,
    pub folder: TempDir,
    /// Where new apps go; `None`: into the default project.
    pub project: Option<i64>,
}

impl World {
    pub async fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let store = Store::open(folder.path()).await.expect("a database");
        let who = principal(&store, "admin", "default").await;
        let mut tx = store.begin().await.expect("a transaction");
        let token = nodes::node_token_create(&mut tx, "test", "hash", NOW).await.expect("a token");
        let (node, _) = nodes::node_register(&mut tx, token, &register(), NOW).await.expect("a node");
        commit(tx).await.expect("a commit");
        Self { store, who, node, folder, project: None }
    }

    /// Inserts a VM and accepts its create operation: (VM, operation).
    pub async fn create(&self, name: &str, port: u16) -> Result<(i64, Uuid), Error> {
        let mut tx = self.store.begin().await?;
        let made = self.create_in(&mut tx, name, port).await?;
        commit(tx).await?;
        Ok(made)
    }

    pub async fn create_in(&self, tx: &mut Tx, name: &str, port: u16) -> Result<(i64, Uuid), Error> {
        let app_id = format!("{:040x}", Uuid::new_v4().as_u128());
        let place = (self.who.workspace_id, self.project.unwrap_or(self.who.project_id));
        provisions::app_compose_insert(tx, place, "c0ffee", "{}", NOW).await?;
        let app_row = provisions::app_ensure(tx, place, &app_id, 1, name, NOW).await?.id;
        let new = NewVm {
            uuid: Uuid::new_v4().to_string(),
            app_row,
            node_id: self.node,
            name: name.to_owned(),
            instance_id: app_id,
            instance_type: None,
            vcpu: 1,
            memory_mb: 1024,
            disk_gb: 10,
            image: "image".to_owned(),
            os_image_hash: None,
            compose_hash: "c0ffee".to_owned(),
            encrypted_env: Some("00".to_owned()),
            env_names: vec!["A".to_owned()],
            user_config: None,
            listed: false,
            restart_policy: RestartPolicy::default(),
            visibility: Visibility::default(),
            shutdown: Shutdown::default(),
            ports: vec![PortMapping {
                protocol: "tcp".to_owned(),
                host_address: "127.0.0.1".to_owned(),
                host_port: port,
                vm_port: 80,
            }],
        };
        let vm = vms::vm_insert(tx, &self.who, &new, VmStatus::Creating, NOW).await?;
        let (_, operation) = vm_operation_accept(tx, &self.who, &info(), submit(vm, &new.uuid, name), NOW).await?;
        Ok((vm, operation))
    }

    pub async fn count(&self, table: &str) -> i64 {
        let file = self.folder.path().join("holdfast.db");
        let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.expect("a connection");
        let sql = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        let count = sqlx::query_scalar(sql).fetch_one(&db).await.expect("a count");
        db.close().await;
        count
    }
}

pub fn submit<'a>(vm_id: i64, vm_uuid: &'a str, vm_name: &'a str) -> VmSubmit<'a> {
    VmSubmit {
        plan: &ops::VM_CREATE,
        vm_id,
        vm_uuid,
        vm_name,
        compose_hash: "c0ffee",
        status_before: VmStatus::Creating,
        request: serde_json::json!({}),
        diff: Default::default(),
        touches: Vec::new(),
        status_code: 200,
        if_busy: IfBusy::Refuse,
    }
}

pub async fn principal(store: &Store, user: &str, workspace: &str) -> Principal {
    let mut tx = store.begin().await.expect("a transaction");
    let address = "00".repeat(20);
    let owner = tenancy::workspace_create(&mut tx, user, "admin", workspace, &address, NOW).await.expect("a workspace");
    let key = format!("key-of-{user}");
    tenancy::api_key_create(&mut tx, owner, "k", "k", &key, "2025-10-28", NOW).await.expect("a key");
    commit(tx).await.expect("a commit");
    store.principal(&key, NOW).await.expect("a query").expect("the principal")
}

pub fn info() -> RequestInfo {
    RequestInfo {
        request_id: "r".to_owned(),
        trace_id: None,
        client_address: None,
        user_agent: String::new(),
        method: "POST".to_owned(),
        path: "/".to_owned(),
        idempotency: None,
        rehearsal: None,
    }
}

pub fn report(uuid: &str, generation: u64, phase: Phase) -> VmReport {
    VmReport {
        uuid: uuid.parse().expect("a UUID"),
        generation,
        outcome: Outcome::Applied,
        phase,
        boot_epoch: 1,
        restarts: 0,
        agent: phase == Phase::Running,
        boot_progress: (phase == Phase::Running).then(|| "done".to_owned()),
        boot_error: None,
        app_revision: if phase == Phase::Running { generation } else { 0 },
        shutdown_progress: None,
        started_at: None,
        exited_at: None,
        exit_reason: None,
        will_restart: false,
        paused: None,
    }
}

fn register() -> Register {
    Register {
        session: Uuid::new_v4(),
        name: "test".to_owned(),
        region: None,
        version: "0".to_owned(),
        hypervisor: "simulated".to_owned(),
        hypervisor_version: "0".to_owned(),
        accelerator: Accelerator::Simulated,
        tee: false,
        boot_id: "b".to_owned(),
        capacity: Capacity { vcpu: 8, memory_mb: 8192, disk_gb: 100, slots: 10 },
        publish_address: "127.0.0.1".to_owned(),
        port_range: (20_000, 20_009),
        images: vec![ImageInfo {
            name: "image".to_owned(),
            version: "1.0.0".to_owned(),
            is_dev: false,
            os_image_hash: None,
        }],
    }
}
