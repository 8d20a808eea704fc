//! Admission and placement on a real store, with nodes that say what they have.

use std::sync::Arc;
use std::time::Duration;

use holdfast_control::deploy::{CommitRequest, ProvisionRequest, Provisioned};
use holdfast_control::{Control, Principal, RequestInfo, Settings, SystemClock, setup};
use holdfast_model::error::{Code, Error};
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{Accelerator, Capacity, Health, Register, Report};
use holdfast_model::vm::VmStatus;
use holdfast_store::Store;
use holdfast_store::vms::Vm;
use tempfile::TempDir;
use uuid::Uuid;

struct Cloud {
    control: Control,
    who: Principal,
    _folder: TempDir,
}

impl Cloud {
    async fn new(settings: Settings) -> Self {
        let folder = TempDir::new().expect("a folder");
        let store = Store::open(folder.path()).await.expect("a database");
        let master = setup::master_key(&folder.path().join("master.key"), true).expect("a master key");
        let keys = setup::keys(&store, &master).await.expect("secrets");
        let file = folder.path().join("admin.key");
        setup::first_admin(&store, &SystemClock, &file).await.expect("an administrator");
        let control = Control::new(store, keys, settings, Arc::new(SystemClock));
        let key = std::fs::read_to_string(file).expect("the key");
        let who = control.authenticate(&key).await.expect("the key works");
        Self { control, who, _folder: folder }
    }

    async fn node(&self, name: &str, capacity: Capacity, change: impl FnOnce(&mut Register, &mut Health)) {
        let token = setup::node_token(&self.control.store, &SystemClock, name).await.expect("a token");
        let token = self.control.authenticate_node(&token).await.expect("it works");
        let image = |name: &str, version: &str| ImageInfo {
            name: name.to_owned(),
            version: version.to_owned(),
            is_dev: false,
            os_image_hash: None,
        };
        let mut hello = Register {
            session: Uuid::new_v4(),
            name: name.to_owned(),
            region: Some("here".to_owned()),
            version: "0".to_owned(),
            hypervisor: "simulated".to_owned(),
            hypervisor_version: "0".to_owned(),
            accelerator: Accelerator::Simulated,
            tee: false,
            boot_id: "b".to_owned(),
            capacity,
            publish_address: "127.0.0.1".to_owned(),
            port_range: (20_000, 20_003),
            images: vec![image("os-1.9.0", "1.9.0"), image("os-1.10.0", "1.10.0")],
        };
        let mut health = Health { disk_free_gb: 100, ready: true, reason: None };
        change(&mut hello, &mut health);
        self.control.node_register(token, &hello).await.expect("registered");
        let report = Report { session: hello.session, seq: 1, health, images: hello.images, vms: Vec::new() };
        self.control.node_report(token, &report).await.expect("reported");
    }

    async fn provision(&self, change: impl FnOnce(&mut ProvisionRequest)) -> Result<Provisioned, Error> {
        let compose = serde_json::json!({ "docker_compose_file": "services: {web: {image: x, ports: ['80:80']}}" });
        let mut request = ProvisionRequest {
            name: format!("app-{}", Uuid::new_v4().simple()),
            compose_file: compose.as_object().expect("an object").clone(),
            ..ProvisionRequest::default()
        };
        change(&mut request);
        self.control.provision(&self.who, &info(), request).await
    }

    async fn commit(&self, provisioned: &Provisioned) -> Result<Vm, Error> {
        let request = CommitRequest {
            app_id: provisioned.app_id.clone(),
            compose_hash: provisioned.compose_hash.clone(),
            ..CommitRequest::default()
        };
        self.control.commit(&self.who, &info(), request).await
    }

    async fn deploy(&self, change: impl FnOnce(&mut ProvisionRequest)) -> Result<Vm, Error> {
        let provisioned = self.provision(change).await?;
        self.commit(&provisioned).await
    }
}

fn info() -> RequestInfo {
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

fn host() -> Capacity {
    Capacity { vcpu: 2, memory_mb: 8192, disk_gb: 100, slots: 10 }
}

async fn refusal(work: impl Future<Output = Result<Vm, Error>>) -> Code {
    work.await.map(|vm| vm.name).expect_err("a refusal").code
}

#[tokio::test]
async fn without_a_node_there_is_no_image_and_no_room() {
    let cloud = Cloud::new(Settings::default()).await;
    assert_eq!(refusal(cloud.deploy(|_| {})).await, Code::ImageNotFound);
}

#[tokio::test]
async fn each_limit_refuses_with_its_own_reason() {
    let cloud = Cloud::new(Settings::default()).await;
    cloud.node("one", host(), |_, _| {}).await;
    assert_eq!(refusal(cloud.deploy(|r| r.memory_mb = Some(8193))).await, Code::NoMemory);
    assert_eq!(refusal(cloud.deploy(|r| r.vcpu = Some(9))).await, Code::NoVcpu);
    assert_eq!(refusal(cloud.deploy(|r| r.disk_gb = Some(401))).await, Code::NoDisk);
    assert_eq!(refusal(cloud.deploy(|r| r.region = Some("there".into()))).await, Code::NoNode);
    assert_eq!(refusal(cloud.deploy(|r| r.node_id = Some(77))).await, Code::NodeNotFound);
    assert_eq!(refusal(cloud.deploy(|r| r.image = Some("os-2".into()))).await, Code::ImageNotFound);
    assert_eq!(refusal(cloud.deploy(|r| r.instance_type = Some("tdx.huge".into()))).await, Code::TypeNotFound);
    assert_eq!(refusal(cloud.deploy(|r| r.kms = Some("ETHEREUM".into()))).await, Code::KmsNotFound);
    assert_eq!(refusal(cloud.deploy(|r| r.gpus = true)).await, Code::FeatureMissing);
    assert_eq!(refusal(cloud.deploy(|r| r.vcpu = Some(0))).await, Code::InvalidRequest);
    let many = "services: {web: {image: x, ports: ['1001-1005:1001-1005']}}";
    let many_ports = |r: &mut ProvisionRequest| {
        r.compose_file.insert("docker_compose_file".into(), many.into());
    };
    assert_eq!(refusal(cloud.deploy(many_ports)).await, Code::NoPort);
    // The largest that fits, fits: vCPUs four times the threads.
    let vm = cloud.deploy(|r| (r.vcpu, r.memory_mb) = (Some(8), Some(8192))).await.expect("it fits");
    assert_eq!(vm.image, "os-1.10.0", "the newest, and 10 is more than 9");
    assert_eq!(refusal(cloud.deploy(|_| {})).await, Code::NoMemory);
}

#[tokio::test]
async fn a_node_that_is_full_silent_or_not_ready_gets_nothing() {
    let patience = Duration::from_millis(300);
    let cloud = Cloud::new(Settings { node_patience: patience, ..Settings::default() }).await;
    cloud.node("broken", host(), |_, health| health.ready = false).await;
    assert_eq!(refusal(cloud.deploy(|_| {})).await, Code::NoNode);
    cloud.node("small", Capacity { slots: 1, ..host() }, |_, _| {}).await;
    cloud.deploy(|_| {}).await.expect("one slot");
    assert_eq!(refusal(cloud.deploy(|_| {})).await, Code::NoSlot);
    let silent = async {
        loop {
            match cloud.deploy(|_| {}).await {
                Err(error) if error.code == Code::NoNode => break,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(patience * 20, silent).await.expect("silence is noticed");
}

#[tokio::test]
async fn the_emptiest_node_is_taken_and_ports_never_twice() {
    let cloud = Cloud::new(Settings::default()).await;
    cloud.node("one", host(), |_, _| {}).await;
    cloud.node("two", Capacity { memory_mb: 9000, ..host() }, |_, _| {}).await;
    let mut nodes = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..8 {
        let vm = cloud.deploy(|r| (r.vcpu, r.memory_mb) = (Some(1), Some(1024))).await.expect("room");
        let published = cloud.control.store.vm_ports(&[vm.id]).await.expect("ports");
        assert_eq!(published[0].1.vm_port, 80);
        ports.push((vm.node_id, published[0].1.host_port));
        nodes.push(vm.node_name);
    }
    assert_eq!(nodes[..4], ["two", "one", "two", "one"]);
    ports.sort_unstable();
    let all = ports.len();
    ports.dedup();
    assert_eq!(ports.len(), all);
    assert_eq!(refusal(cloud.deploy(|r| (r.vcpu, r.memory_mb) = (Some(1), Some(1024)))).await, Code::NoPort);
}

#[tokio::test]
async fn a_commit_is_idempotent_and_an_app_has_one_configuration() {
    let cloud = Cloud::new(Settings::default()).await;
    cloud.node("one", host(), |_, _| {}).await;
    let provisioned = cloud.provision(|r| r.name = "hello-one".into()).await.expect("provisioned");
    let first = cloud.commit(&provisioned).await.expect("committed");
    let again = cloud.commit(&provisioned).await.expect("committed again");
    assert_eq!((first.uuid.clone(), first.status().expect("a status")), (again.uuid, VmStatus::Creating));
    assert_eq!(refusal(cloud.deploy(|r| r.name = "hello-one".into())).await, Code::NameTaken);

    let nonce = 1;
    let other = cloud.provision(|r| {
        r.name = "hello-one".into();
        (r.app_id, r.nonce) = (Some(provisioned.app_id.clone()), Some(nonce));
        r.compose_file.insert("salt".into(), "x".into());
    });
    let other = other.await.expect("the same app, another configuration");
    assert_ne!(other.compose_hash, provisioned.compose_hash);
    assert_eq!(refusal(cloud.commit(&other)).await, Code::AppConflict);
    let unknown = Provisioned { compose_hash: "00".repeat(32), app_id: "00".repeat(20), ..provisioned };
    assert_eq!(refusal(cloud.commit(&unknown)).await, Code::ProvisionMissing);
    let wrong = cloud.provision(|r| (r.app_id, r.nonce) = (Some("11".repeat(20)), Some(4))).await;
    assert_eq!(wrong.expect_err("not that address").code, Code::InvalidRequest);
}

#[tokio::test]
async fn two_that_race_for_a_name_have_one_winner() {
    let cloud = Arc::new(Cloud::new(Settings::default()).await);
    cloud.node("one", host(), |_, _| {}).await;
    let mut provisioned = Vec::new();
    for _ in 0..4 {
        provisioned.push(cloud.provision(|r| r.name = "wanted".into()).await.expect("provisioned"));
    }
    let racers = provisioned.into_iter().map(|p| {
        let cloud = cloud.clone();
        tokio::spawn(async move { cloud.commit(&p).await.map(drop).map_err(|e| e.code) })
    });
    let mut results = Vec::new();
    for racer in racers.collect::<Vec<_>>() {
        results.push(racer.await.expect("no panic"));
    }
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(results.iter().filter(|r| **r == Err(Code::NameTaken)).count(), 3);
}

#[tokio::test]
async fn names() {
    use holdfast_control::deploy::check_name;
    for good in ["hello", "Hello-1", "a1234", &"a".repeat(63)] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in ["", "abcd", "1hello", "-hello", "hello-", "he--llo", "hello_1", "héllo", "hello world", &"a".repeat(64)]
    {
        assert_eq!(check_name(bad).expect_err(bad).code, Code::NameInvalid);
    }
}
