//! What every hypervisor must do. QEMU is tested with a real guest image if one was built on this machine
//! (`HOLDFAST_IMAGE_DIR`, or the user's cache folder); without one that half says so and passes.

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_model::guest::{Keys, LogOptions};
use holdfast_model::node::{DesiredVm, LogSource};
use holdfast_model::vm::{RunState, VmSpec};
use holdfast_node::NodeConfig;
use holdfast_node::hypervisor::qemu::Qemu;
use holdfast_node::hypervisor::simulated::Simulated;
use holdfast_node::hypervisor::{Adopted, Hypervisor, KeyError, KeySource, LogSink, Started, View};
use holdfast_node::record::{Layout, Life, Process, Record, Runtime};
use support::{end_machines, real_image, spec, want};
use tokio::sync::watch;

struct SomeKeys;

#[async_trait]
impl KeySource for SomeKeys {
    async fn keys(&self, _uuid: uuid::Uuid) -> Result<Keys, KeyError> {
        Ok(Keys { env_key: "e1".repeat(32), disk_key: "d1".repeat(32) })
    }
}

#[derive(Default)]
struct Text(Vec<u8>);

#[async_trait]
impl LogSink for Text {
    async fn write(&mut self, _channel: u8, data: Bytes) -> bool {
        self.0.extend_from_slice(&data);
        true
    }
}

/// What a guest may take to its app on a machine that does other things as well.
const BOOT: Duration = Duration::from_secs(240);

/// Says vCPUs, megabytes of memory, and gigabytes of the data disk.
const SIZES: &str =
    "echo $(nproc) $(free -m | awk '/^Mem/ {print $2}') $(df -BG --output=size /data | tail -n 1 | tr -d ' G')";

/// The first line that the app's script wrote.
async fn script_log(hypervisor: &dyn Hypervisor, uuid: uuid::Uuid) -> String {
    let deadline = tokio::time::Instant::now() + BOOT;
    loop {
        let mut text = Text::default();
        let source = LogSource::Container("app".into());
        hypervisor.logs(uuid, source, LogOptions::default(), &mut text).await.expect("the script's log");
        let text = String::from_utf8(text.0).expect("text");
        if text.contains('\n') {
            return text;
        }
        assert!(tokio::time::Instant::now() < deadline, "the script says nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Makes the same hypervisor over the same folder, as often as it is asked to: each is a new life of the node.
#[async_trait]
trait Maker: Sync {
    async fn make(&self) -> Arc<dyn Hypervisor>;
    fn spec(&self) -> VmSpec;
}

fn runtime(started: &Started, life: Life) -> Runtime {
    Runtime { life, epoch: 1, process: started.process, started_at: Some(started.at), ..Runtime::default() }
}

/// After a kill the view says that the machine ended, or closes.
async fn ended(view: &mut watch::Receiver<View>) {
    let ended = view.wait_for(|v| v.ended.is_some());
    let _ = tokio::time::timeout(Duration::from_secs(2), ended).await.expect("seen within 2 s");
}

/// Running, in the first generation.
fn wanted(spec: &VmSpec) -> Arc<DesiredVm> {
    Arc::new(want(spec, 1, RunState::Running, 1))
}

/// The same VM with another app, in a newer generation.
fn changed(spec: &VmSpec, generation: u64, app: &str) -> Arc<DesiredVm> {
    Arc::new(want(&VmSpec { app_compose: script(app), ..spec.clone() }, generation, RunState::Running, 1))
}

fn script(text: &str) -> String {
    serde_json::json!({ "name": "app", "runner": "bash", "bash_script": format!("{text}\nsleep 1000 & wait") })
        .to_string()
}

/// The guest has brought up the app of this generation.
async fn app_up(view: &mut watch::Receiver<View>, generation: u64) {
    let up = |v: &View| v.guest.app_revision == generation && v.guest.boot_progress.as_deref() == Some("done");
    let seen =
        tokio::time::timeout(BOOT, view.wait_for(|v| up(v) || v.guest.boot_error.is_some() || v.ended.is_some()));
    let seen = seen.await.unwrap_or_else(|_| panic!("no app of generation {generation}")).expect("watched").clone();
    assert!(up(&seen), "generation {generation}: {seen:?}");
}

/// Writes the record as the node does before it acts.
fn announce(hypervisor: &dyn Hypervisor, spec: &VmSpec, runtime: Runtime) {
    let record = Record { desired: wanted(spec), runtime };
    hypervisor.records().save_desired(&record).expect("save");
    hypervisor.records().save_runtime(&record, true).expect("save");
}

async fn conforms(maker: &dyn Maker) {
    let hypervisor = maker.make().await;
    let spec = maker.spec();
    let health = hypervisor.health().await;
    assert!(health.ready, "{health:?}");
    assert!(hypervisor.images().await.iter().any(|i| i.name == spec.image));
    let capacity = hypervisor.capacity().await;
    assert!(capacity.vcpu > 0 && capacity.memory_mb > 0 && capacity.slots > 0);

    // An image that is not there is a fault that may pass.
    let fault = hypervisor.prepare(&VmSpec { image: "none-such".into(), ..spec.clone() }).await.expect_err("no image");
    assert_eq!((fault.code, fault.retryable), ("image_missing", true));

    // Every step may be repeated.
    announce(&*hypervisor, &spec, Runtime::default());
    hypervisor.prepare(&spec).await.expect("prepare");
    hypervisor.prepare(&spec).await.expect("prepare again");
    let first = hypervisor.start(&wanted(&spec)).await.expect("start");
    announce(&*hypervisor, &spec, runtime(&first, Life::On));
    let mut second = hypervisor.start(&wanted(&spec)).await.expect("start again");
    announce(&*hypervisor, &spec, runtime(&second, Life::On));
    assert!(second.view.borrow().ended.is_none());

    // Another app while it runs: the guest takes it over, and the same app again only for its generation.
    app_up(&mut second.view, 1).await;
    hypervisor.configure(&changed(&spec, 2, "echo two")).await;
    app_up(&mut second.view, 2).await;
    hypervisor.configure(&changed(&spec, 3, "echo two")).await;
    hypervisor.configure(&changed(&spec, 3, "echo two")).await;
    app_up(&mut second.view, 3).await;

    // Logs can be read while it runs; what is not there has its word.
    let mut text = Text::default();
    hypervisor.logs(spec.uuid, LogSource::Serial, LogOptions::default(), &mut text).await.expect("logs");
    let stranger = uuid::Uuid::new_v4();
    assert!(hypervisor.logs(stranger, LogSource::Serial, LogOptions::default(), &mut text).await.is_err());
    assert!(hypervisor.containers(stranger).await.is_err());
    // The machine has the size that was asked for, as its guest sees it.
    assert!(hypervisor.stats(stranger).await.is_err());
    let machine = hypervisor.stats(spec.uuid).await.expect("stats");
    assert_eq!(machine.num_cpus, spec.vcpu, "{machine:?}");
    let memory = spec.memory_mb * 1024 * 1024;
    assert!(machine.total_memory > memory * 3 / 4 && machine.total_memory <= memory, "{machine:?}");
    assert!(machine.disks.iter().any(|disk| disk.mount_point == "/data"), "{machine:?}");

    // A new life of the node finds it, from the record or without.
    drop(hypervisor);
    let hypervisor = maker.make().await;
    let known = runtime(&second, Life::On);
    let fourth = changed(&spec, 4, "echo four");
    let Adopted::Running(mut adopted) = hypervisor.adopt(&fourth, &known).await else { panic!("lost") };
    assert_eq!(adopted.process, second.process);
    // What changed while no node was there goes to the guest now.
    app_up(&mut adopted.view, 4).await;
    if second.process.is_some() {
        drop(hypervisor);
        let hypervisor = maker.make().await;
        let unknown = Runtime { life: Life::Starting, process: None, ..known.clone() };
        let Adopted::Running(found) = hypervisor.adopt(&wanted(&spec), &unknown).await else {
            panic!("a process that was started but not written down is not found");
        };
        assert_eq!(found.process, second.process);
        second.view = found.view;
        // A record whose pid belongs to somebody else by now.
        let reused = second.process.map(|p| Process { pid: p.pid, start_time: p.start_time + 1 });
        let Adopted::Running(found) =
            hypervisor.adopt(&wanted(&spec), &Runtime { process: reused, ..known.clone() }).await
        else {
            panic!("lost")
        };
        assert_eq!(found.process, second.process);
        finish(&*hypervisor, &spec, found.view, &known).await;
    } else {
        finish(&*hypervisor, &spec, adopted.view, &known).await;
    }
}

/// Kills, looks, and removes.
async fn finish(hypervisor: &dyn Hypervisor, spec: &VmSpec, mut view: watch::Receiver<View>, known: &Runtime) {
    hypervisor.kill(spec.uuid).await.expect("kill");
    ended(&mut view).await;
    hypervisor.kill(spec.uuid).await.expect("kill again");
    assert!(hypervisor.containers(spec.uuid).await.is_err());
    assert!(hypervisor.stats(spec.uuid).await.is_err());
    let off = Runtime { life: Life::Off, process: None, ..known.clone() };
    announce(hypervisor, spec, off.clone());
    assert!(!matches!(hypervisor.adopt(&wanted(spec), &off).await, Adopted::Running(_)));

    // It starts again from its disks, larger than before, which may be said twice.
    let (vcpu, memory_mb, disk_gb) = (spec.vcpu + 1, spec.memory_mb + 256, spec.disk_gb + 2);
    let spec = &VmSpec { vcpu, memory_mb, disk_gb, app_compose: script(SIZES), ..spec.clone() };
    for _ in 0..2 {
        hypervisor.prepare(spec).await.expect("prepare a larger size");
    }
    let mut started =
        hypervisor.start(&Arc::new(want(spec, 5, RunState::Running, 2))).await.expect("start after a kill");
    app_up(&mut started.view, 5).await;
    if started.process.is_some() {
        let sizes = script_log(hypervisor, spec.uuid).await;
        let numbers: Vec<u64> = sizes.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        let [cpus, memory, disk] = numbers[..] else { panic!("{sizes:?}") };
        assert_eq!((cpus, disk), (u64::from(vcpu), disk_gb), "{sizes:?}");
        assert!(memory > memory_mb * 3 / 4 && memory <= memory_mb, "{sizes:?}");
    }
    // A disk does not shrink below what it was made with; the machine that runs does not notice.
    if started.process.is_some() {
        let less = VmSpec { disk_gb: spec.disk_gb - 3, ..spec.clone() };
        let fault = hypervisor.prepare(&less).await.expect_err("a smaller disk");
        assert_eq!((fault.code, fault.retryable), ("disk_shrink", false));
    }
    // Whoever follows a log is let go when the VM goes.
    let (mut serial, mut app) = (Text::default(), Text::default());
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let going = async {
        tokio::join!(
            hypervisor.logs(spec.uuid, LogSource::Serial, follow.clone(), &mut serial),
            hypervisor.logs(spec.uuid, LogSource::Container("app".into()), follow.clone(), &mut app),
            hypervisor.remove(spec.uuid),
        )
    };
    let (followed, _, removed) =
        tokio::time::timeout(Duration::from_secs(30), going).await.expect("a log is followed for ever");
    followed.expect("the console's log");
    removed.expect("remove while it runs");
    hypervisor.remove(spec.uuid).await.expect("remove again");
    if let Some(process) = started.process {
        assert!(!std::path::Path::new(&format!("/proc/{}/cwd", process.pid)).exists(), "still there");
    }
    assert!(hypervisor.records().load().expect("load").records.is_empty());
    assert_eq!(std::fs::read_dir(hypervisor.records().dir()).expect("list").count(), 0, "something is left");
}

struct MakeSimulated(tempfile::TempDir);

#[async_trait]
impl Maker for MakeSimulated {
    async fn make(&self) -> Arc<dyn Hypervisor> {
        let step = Duration::from_millis(2);
        Arc::new(Simulated::open(&self.0.path().join("vms"), step, None, Vec::new()).expect("open"))
    }
    fn spec(&self) -> VmSpec {
        spec("simulated")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_conforms() {
    let maker = MakeSimulated(tempfile::tempdir().expect("a folder"));
    conforms(&maker).await;
    let hypervisor = maker.make().await;
    assert_eq!(hypervisor.records().layout(), Layout::Files);
}

struct MakeQemu {
    dir: tempfile::TempDir,
    image_dir: std::path::PathBuf,
    image: String,
}

impl MakeQemu {
    /// Deeper than the path of a unix socket may be.
    fn deep(&self) -> std::path::PathBuf {
        self.dir.path().join("d".repeat(100))
    }
}

impl Drop for MakeQemu {
    fn drop(&mut self) {
        end_machines(&self.deep().join("vms"));
    }
}

#[async_trait]
impl Maker for MakeQemu {
    async fn make(&self) -> Arc<dyn Hypervisor> {
        let deep = self.deep();
        let mut config = NodeConfig::new("http://127.0.0.1:1", "t", deep.clone(), self.image_dir.clone());
        config.min_free_disk_gb = 1;
        std::fs::create_dir_all(&deep).expect("mkdir");
        let hypervisor = Qemu::open(&config, Arc::new(SomeKeys)).await.expect("open");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !hypervisor.health().await.ready {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", hypervisor.health().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Arc::new(hypervisor)
    }
    fn spec(&self) -> VmSpec {
        VmSpec { app_compose: script("echo one"), memory_mb: 768, ..spec(&self.image) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_conforms() {
    let (image_dir, image) = real_image();
    conforms(&MakeQemu { dir: tempfile::tempdir().expect("a folder"), image_dir, image }).await;
}
