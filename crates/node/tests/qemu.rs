//! The whole node against a fake server, with real VMs. Without a guest image on this machine each test says so and
//! passes; see `support::real_image`. They take turns, because two cores boot one guest in some seconds.

mod support;

use std::path::Path;
use std::time::Duration;

use holdfast_model::node::{LogSource, Outcome, Phase, StreamReply, StreamRequest, VmReport};
use holdfast_model::vm::{PortMapping, RestartPolicy, RunState, StopMode};
use holdfast_node::NodeConfig;
use holdfast_node::record::{Process, Runtime};
use support::{ENV_KEY, FakeServer, RunningNode, Streamed, end_machines, kill, processes_with, real_image, spec, want};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(20);
/// A guest under emulation on a busy machine.
const BOOT: Duration = Duration::from_secs(120);

static TURN: Mutex<()> = Mutex::const_new(());

struct Rig {
    server: FakeServer,
    dir: tempfile::TempDir,
    image: String,
    image_dir: std::path::PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Rig {
    async fn new() -> Self {
        let (image_dir, image) = real_image();
        let turn = TURN.lock().await;
        let dir = tempfile::tempdir().expect("a folder");
        Self { server: FakeServer::start().await, dir, image, image_dir, _turn: turn }
    }

    fn config(&self) -> NodeConfig {
        let mut config = self.server.config(self.dir.path());
        config.image_dir = self.image_dir.clone();
        config
    }

    fn runtime(&self, vm: Uuid) -> Runtime {
        let path = self.dir.path().join(format!("node/vms/{vm}/runtime.json"));
        serde_json::from_slice(&std::fs::read(path).expect("runtime.json")).expect("json")
    }

    fn process(&self, vm: Uuid) -> Process {
        self.runtime(vm).process.expect("a process")
    }

    async fn running(&self, vm: Uuid, generation: u64) -> VmReport {
        self.server.applied(vm, generation, Phase::Running, SOON).await
    }

    async fn remove(&self, vm: Uuid, generation: u64) {
        let mut tombstone = want(&spec(""), generation, RunState::Absent, 1);
        tombstone.uuid = vm;
        self.server.want(tombstone);
        self.server.applied(vm, generation, Phase::Absent, SOON).await;
        let left = std::fs::read_dir(self.dir.path().join("node/vms")).expect("list").count();
        assert_eq!(left, 0, "something is left of the VM");
    }
}

fn runs(process: Process) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    stat.contains(&format!(" {} ", process.start_time)) && !stat.contains(") Z ")
}

impl Drop for Rig {
    /// A test that failed leaves no QEMU behind.
    fn drop(&mut self) {
        end_machines(&self.dir.path().join("node/vms"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_is_seen_and_started_again() {
    let rig = Rig::new().await;
    let node = RunningNode::start(rig.config());
    let vm = spec(&rig.image);
    rig.server.want(want(&vm, 1, RunState::Running, 1));
    rig.running(vm.uuid, 1).await;
    let first = rig.process(vm.uuid);
    kill(first.pid);
    let within = Duration::from_secs(2);
    rig.server.until("the death is reported", within, |w| w.phases[&vm.uuid].contains(&Phase::Exited)).await;
    let again = rig.server.until_vm("restarted", vm.uuid, SOON, |r| r.phase == Phase::Running && r.restarts == 1).await;
    assert_eq!((again.boot_epoch, again.generation, again.outcome), (1, 1, Outcome::Applied));
    assert_ne!(rig.process(vm.uuid), first);

    // A VM that must not be restarted stays exited.
    let mut never = want(&vm, 2, RunState::Running, 2);
    never.spec.as_mut().expect("a spec").restart_policy = RestartPolicy::Never;
    rig.server.want(never);
    rig.running(vm.uuid, 2).await;
    kill(rig.process(vm.uuid).pid);
    let exited = rig.server.until_vm("exited", vm.uuid, within, |r| r.phase == Phase::Exited).await;
    assert!(!exited.will_restart && exited.exited_at.is_some());
    assert!(exited.exit_reason.is_some_and(|r| r.contains("signal: 9")));
    rig.remove(vm.uuid, 3).await;
    node.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_adopts_what_runs() {
    let rig = Rig::new().await;
    let vm = spec(&rig.image);
    let node = RunningNode::start(rig.config());
    rig.server.want(want(&vm, 1, RunState::Running, 1));
    rig.running(vm.uuid, 1).await;
    let process = rig.process(vm.uuid);
    node.stop().await.expect("stops");
    assert!(runs(process), "the VM ended with its node");

    // Its server is not there: the files are enough. A lost runtime.json stands for a kill between spawn and write.
    let folder = rig.dir.path().join("node/vms").join(vm.uuid.to_string());
    for lose in [false, true] {
        if lose {
            let starting = r#"{"life":"starting","epoch":1,"restarts":0,"host_boot_id":"BOOT"}"#;
            let boot_id = holdfast_node::host::boot_id();
            std::fs::write(folder.join("runtime.json"), starting.replace("BOOT", &boot_id)).expect("write");
        }
        let mut config = rig.config();
        config.server_url = "http://127.0.0.1:1".into();
        let node = RunningNode::start(config);
        adopted_until(&rig, vm.uuid, process.pid).await;
        node.kill().await;
    }

    rig.server.world().reports.clear();
    let node = RunningNode::start(rig.config());
    let report = rig.running(vm.uuid, 1).await;
    assert_eq!((report.restarts, rig.process(vm.uuid)), (0, process));

    // One that ended while nobody looked has died, and is started again in its epoch.
    node.kill().await;
    kill(process.pid);
    rig.server.world().reports.clear();
    let node = RunningNode::start(rig.config());
    let report = rig.server.until_vm("restarted", vm.uuid, SOON, |r| r.phase == Phase::Running).await;
    assert_eq!((report.restarts, report.boot_epoch), (1, 1));

    // After a restart of the host everything that should run runs again, and no death is counted.
    let process = rig.process(vm.uuid);
    node.kill().await;
    kill(process.pid);
    let text = std::fs::read_to_string(folder.join("runtime.json")).expect("read");
    let boot_id = holdfast_node::host::boot_id();
    assert!(text.contains(&boot_id));
    std::fs::write(folder.join("runtime.json"), text.replace(&boot_id, "another boot")).expect("write");
    rig.server.world().reports.clear();
    let node = RunningNode::start(rig.config());
    let report = rig.running(vm.uuid, 1).await;
    assert_eq!((report.restarts, report.boot_epoch), (0, 1));
    rig.remove(vm.uuid, 2).await;
    node.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_said_and_passes() {
    let rig = Rig::new().await;
    let node = RunningNode::start(rig.config());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut vm = spec(&rig.image);
    vm.ports = vec![PortMapping {
        protocol: "tcp".into(),
        host_address: "127.0.0.1".into(),
        host_port: taken.local_addr().expect("bound").port(),
        vm_port: 80,
    }];
    rig.server.want(want(&vm, 1, RunState::Running, 1));
    let failed = rig.server.until_vm("refused", vm.uuid, SOON, |r| matches!(r.outcome, Outcome::Failed { .. })).await;
    assert!(
        matches!(failed.outcome, Outcome::Failed { ref code, retryable: true, .. } if code == "port_in_use"),
        "{failed:?}"
    );
    drop(taken);
    rig.running(vm.uuid, 1).await;
    rig.remove(vm.uuid, 2).await;
    node.stop().await.expect("stops");
}

/// A guest boots to its app, is looked into, and powers itself off when asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_talks_and_shuts_down() {
    let rig = Rig::new().await;
    let node = RunningNode::start(rig.config());
    let mut vm = spec(&rig.image);
    vm.memory_mb = 1024;
    vm.app_compose =
        r#"{"allowed_envs":[],"bash_script":"echo app started; while :; do sleep 1; done","manifest_version":2,"name":"app","runner":"bash"}"#
            .into();
    rig.server.want(want(&vm, 1, RunState::Running, 1));
    rig.running(vm.uuid, 1).await;
    let answered = rig.server.until_vm("the agent answers", vm.uuid, BOOT, |r| r.agent).await;
    assert!(answered.boot_progress.is_some());
    let booted = rig
        .server
        .until_vm("the app is up", vm.uuid, BOOT, |r| {
            r.boot_progress.as_deref() == Some("done") || r.boot_error.is_some()
        })
        .await;
    assert_eq!(booted.boot_error, None);
    assert!(rig.server.world().keys_given > 0, "the guest asked for its keys");

    let log = |id, source| {
        let options = holdfast_model::guest::LogOptions { tail: Some(100), ..Default::default() };
        StreamRequest::Logs { id, vm: vm.uuid, source, options }
    };
    let requests = vec![StreamRequest::Containers { id: 1, vm: vm.uuid }, log(2, LogSource::Serial)];
    let replies = |got: &[Streamed]| got.iter().filter(|s| matches!(s, Streamed::Reply(_))).count();
    let got = rig.server.stream(requests, |got| replies(got) == 2).await;
    assert!(got.iter().any(|s| matches!(s, Streamed::Reply(StreamReply::Containers { id: 1, .. }))), "{got:?}");
    assert!(got.iter().any(|s| matches!(s, Streamed::Data { id: 2, data, .. } if !data.is_empty())), "{got:?}");

    // A new node hears from the guest again, and does not forget it meanwhile.
    node.kill().await;
    rig.server.world().reports.clear();
    let node = RunningNode::start(rig.config());
    let adopted = rig.running(vm.uuid, 1).await;
    assert!(adopted.agent && adopted.boot_progress.as_deref() == Some("done"), "{adopted:?}");

    // Another app goes to the guest that runs; the one after it although the node is killed when it comes.
    let up = |r: &VmReport, generation| {
        assert_eq!(r.boot_error, None);
        r.generation == generation && r.app_revision == generation && r.boot_progress.as_deref() == Some("done")
    };
    let mut newer = vm.clone();
    newer.app_compose = vm.app_compose.replace("app started", "another app started");
    rig.server.want(want(&newer, 2, RunState::Running, 1));
    rig.server.until_vm("another app is up", vm.uuid, BOOT, |r| up(r, 2)).await;
    node.kill().await;
    newer.app_compose = vm.app_compose.replace("app started", "a third app started");
    rig.server.want(want(&newer, 3, RunState::Running, 1));
    let node = RunningNode::start(rig.config());
    let third = rig.server.until_vm("a third app is up", vm.uuid, BOOT, |r| up(r, 3)).await;
    assert_eq!((third.started_at, third.boot_epoch, third.restarts), (adopted.started_at, 1, 0), "it was restarted");

    let mut stop = want(&newer, 4, RunState::Stopped, 1);
    stop.stop = StopMode::Graceful { grace_s: 60 };
    rig.server.want(stop);
    let stopped = rig.server.applied(vm.uuid, 4, Phase::Stopped, Duration::from_secs(50)).await;
    assert_eq!(stopped.exit_reason.as_deref(), Some("the guest powered itself off"));
    assert_eq!(find(rig.dir.path(), ENV_KEY), Vec::<String>::new(), "a key is on disk");
    rig.remove(vm.uuid, 5).await;
    node.stop().await.expect("stops");
}

/// A guest that hangs in its boot and writes to its console without end costs its own VM its app and the node a bounded
/// file; the VM beside it boots, answers, and does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn the_trouble_of_one_guest_stays_its_own() {
    let rig = Rig::new().await;
    let node = RunningNode::start(rig.config());
    let mut hangs = spec(&rig.image);
    hangs.memory_mb = 1024;
    hangs.app_compose = serde_json::json!({
        "name": "hangs", "runner": "bash", "bash_script": "true",
        "pre_launch_script": "yes 'a line that nobody wants' > /dev/console & wait",
    })
    .to_string();
    let mut good = spec(&rig.image);
    good.memory_mb = 1024;
    good.app_compose = r#"{"bash_script":"echo app started; sleep 1000 & wait","name":"good","runner":"bash"}"#.into();
    rig.server.want(want(&hangs, 1, RunState::Running, 1));
    rig.server.want(want(&good, 1, RunState::Running, 1));
    let progress = |r: &VmReport, word| r.boot_progress.as_deref() == Some(word);
    rig.server.until_vm("the one hangs", hangs.uuid, BOOT, |r| progress(r, "pre-launch")).await;
    let up = rig.server.until_vm("the other is up", good.uuid, BOOT, |r| progress(r, "done")).await;
    assert_eq!((up.boot_error, up.restarts), (None, 0));

    // The flood goes on past several rotations of its file.
    let folder = rig.dir.path().join(format!("node/vms/{}", hangs.uuid));
    let sizes = || -> Vec<u64> {
        let files = std::fs::read_dir(&folder).expect("list").flatten();
        let logs = files.filter(|f| f.file_name().to_string_lossy().starts_with("serial.log"));
        logs.map(|f| f.metadata().map_or(0, |m| m.len())).collect()
    };
    let end = tokio::time::Instant::now() + BOOT;
    let most = 4 * 4 * 1024 * 1024 + 8 * 1024 * 1024;
    while sizes().len() < 3 {
        assert!(tokio::time::Instant::now() < end, "no flood: {:?}", sizes());
        assert!(sizes().iter().sum::<u64>() < most, "{:?}", sizes());
        let request = vec![StreamRequest::Stats { id: 1, vm: good.uuid }];
        let got = rig.server.stream(request, |got| !got.is_empty()).await;
        assert!(matches!(got[0], Streamed::Reply(StreamReply::Stats { .. })), "{got:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let still = rig.server.report_of(hangs.uuid).expect("reported");
    assert!(progress(&still, "pre-launch") && still.phase == Phase::Running, "{still:?}");

    // It is ended like any other; a guest that does not listen is not waited for.
    let mut tombstone = want(&hangs, 2, RunState::Absent, 1);
    tombstone.stop = StopMode::Hard;
    rig.server.want(tombstone);
    rig.server.applied(hangs.uuid, 2, Phase::Absent, SOON).await;
    assert!(!folder.exists());
    let after = rig.server.report_of(good.uuid).expect("reported");
    assert_eq!((after.phase, after.restarts, after.boot_epoch), (Phase::Running, 0, 1));
    rig.remove(good.uuid, 2).await;
    node.stop().await.expect("stops");
}

/// The node as a process, for [`a_node_killed_again_and_again`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test of its own"]
async fn node_process() {
    if std::env::var_os("NODE_SERVER").is_none() {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let var = |name: &str| std::env::var(name).expect("set by the test");
    let mut config =
        NodeConfig::new(var("NODE_SERVER"), support::TOKEN, var("NODE_DATA").into(), var("NODE_IMAGES").into());
    config.min_free_disk_gb = 1;
    config.restart_backoff = Duration::from_millis(50);
    holdfast_node::run(config, Default::default()).await.expect("runs");
}

/// Real kill -9 at many moments of a start and of a restart with another size: never two QEMU, never one forgotten, and
/// at last each time the size that is wanted.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_again_and_again() {
    let rig = Rig::new().await;
    let spawn = || node_child(&rig, &rig.image_dir);
    let mut vm = spec(&rig.image);
    for (round, wait_ms) in [0, 10, 20, 30, 40, 60, 80, 100, 130, 160, 200, 300].into_iter().enumerate() {
        let generation = round as u64 + 1;
        (vm.vcpu, vm.memory_mb, vm.disk_gb) = (1 + generation as u32 % 2, 512 + 16 * generation, 2 + generation);
        let node = spawn();
        rig.server.until("registered", SOON, |w| w.registered.len() == round * 2 + 1).await;
        rig.server.want(want(&vm, generation, RunState::Running, generation));
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        node.kill();
        assert!(qemus(&vm.uuid).len() <= 1, "two QEMU after {wait_ms} ms");
        let node = spawn();
        rig.server.until("registered again", SOON, |w| w.registered.len() == round * 2 + 2).await;
        let report = rig.running(vm.uuid, generation).await;
        assert_eq!((report.boot_epoch, report.restarts), (generation, 0), "after {wait_ms} ms");
        let running = qemus(&vm.uuid);
        assert_eq!(running.len(), 1, "after {wait_ms} ms");
        let words = std::fs::read(format!("/proc/{}/cmdline", running[0])).expect("it runs");
        let words: Vec<_> = words.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        let after = |name: &str| words.windows(2).find(|w| w[0] == name).map(|w| w[1].to_string());
        assert_eq!(after("-smp"), Some(vm.vcpu.to_string()), "after {wait_ms} ms");
        assert_eq!(after("-m"), Some(format!("{}M", vm.memory_mb)), "after {wait_ms} ms");
        let header = std::fs::read(rig.dir.path().join(format!("node/vms/{}/data.qcow2", vm.uuid))).expect("a disk");
        let size = u64::from_be_bytes(header[24..32].try_into().expect("8 bytes"));
        assert_eq!(size, vm.disk_gb << 30, "after {wait_ms} ms");
        adopted_until(&rig, vm.uuid, running[0]).await;
        node.kill();
    }
    let node = RunningNode::start(rig.config());
    rig.remove(vm.uuid, 99).await;
    assert!(qemus(&vm.uuid).is_empty());
    node.stop().await.expect("stops");
}

/// A guest that is only tried out ends with the node that tries it, even when that one is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_while_it_probes_leaves_no_guest() {
    let rig = Rig::new().await;
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("no KVM here, so nothing is ever probed: not tested");
        return;
    }
    // An image folder without a verdict, that is told from all others by its path on QEMU's command line.
    let (images, from) = (rig.dir.path().join("images"), rig.image_dir.join(&rig.image));
    std::fs::create_dir_all(images.join(&rig.image)).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("list").flatten() {
        std::fs::hard_link(entry.path(), images.join(&rig.image).join(entry.file_name()))
            .or_else(|_| std::fs::copy(entry.path(), images.join(&rig.image).join(entry.file_name())).map(drop))
            .expect("link or copy");
    }
    let needle = images.display().to_string();
    let node = node_child(&rig, &images);
    let deadline = tokio::time::Instant::now() + SOON;
    while processes_with(&needle).is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "no probe was seen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    node.kill();
    while !processes_with(&needle).is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the probe guest was left behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Starts [`node_process`] over the rig's data folder.
fn node_child(rig: &Rig, images: &Path) -> NodeChild {
    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "node_process", "--ignored"])
        .env("NODE_SERVER", &rig.server.url)
        .env("NODE_DATA", rig.dir.path().join("node"))
        .env("NODE_IMAGES", images)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("spawn");
    NodeChild(child)
}

/// A node process, killed as with kill -9 at the latest when the test ends.
struct NodeChild(std::process::Child);

impl NodeChild {
    fn kill(self) {}
}

impl Drop for NodeChild {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("reaped");
    }
}

/// Waits until the record names the process `pid`.
async fn adopted_until(rig: &Rig, vm: Uuid, pid: i32) {
    let deadline = tokio::time::Instant::now() + SOON;
    while rig.runtime(vm).process.map(|p| p.pid) != Some(pid) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", rig.runtime(vm));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// QEMU processes of the VM.
fn qemus(vm: &Uuid) -> Vec<i32> {
    processes_with(&format!("-uuid\0{vm}"))
}

/// A nearly full disk refuses what is new.
#[tokio::test(flavor = "multi_thread")]
async fn new_vms_are_refused_when_the_disk_is_nearly_full() {
    let rig = Rig::new().await;
    let mut config = rig.config();
    config.min_free_disk_gb = 1_000_000;
    let node = RunningNode::start(config);
    let vm = spec(&rig.image);
    rig.server.want(want(&vm, 1, RunState::Running, 1));
    let failed = rig.server.until_vm("refused", vm.uuid, SOON, |r| matches!(r.outcome, Outcome::Failed { .. })).await;
    assert!(
        matches!(failed.outcome, Outcome::Failed { ref code, retryable: true, .. } if code == "disk_full"),
        "{failed:?}"
    );
    rig.server.until("not ready", SOON, |w| w.health.as_ref().is_some_and(|h| !h.ready && h.reason.is_some())).await;
    rig.remove(vm.uuid, 2).await;
    node.stop().await.expect("stops");
}

/// Files below `dir` that hold `needle`.
fn find(dir: &Path, needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("list").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(find(&path, needle));
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).expect("read");
            if bytes.windows(needle.len()).any(|w| w == needle.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}
