//! The whole node against a fake server, with simulated VMs.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_model::node::{DesiredVm, GUEST_STAYS, LogSource, Outcome, Phase, StreamReply, StreamRequest, VmReport};
use holdfast_model::vm::{RunState, StopMode, VmSpec};
use holdfast_node::hypervisor::simulated::{DEAF_SERVICE, FAILING_SERVICE};
use holdfast_node::{HypervisorKind, NodeConfig};
use support::{FakeServer, RunningNode, Streamed, spec, want};

const SOON: Duration = Duration::from_secs(10);
/// Longer than a guest is waited for that has no grace.
const GIVES_UP: Duration = Duration::from_secs(40);

fn config(server: &FakeServer, dir: &std::path::Path, step_ms: u64) -> NodeConfig {
    let mut config = server.config(dir);
    config.hypervisor = HypervisorKind::Simulated;
    config.simulated_step = Duration::from_millis(step_ms);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_and_goes() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let node = RunningNode::start(config(&server, dir.path(), 20));
    let vm = spec("simulated");
    server.want(want(&vm, 1, RunState::Running, 1));
    server.applied(vm.uuid, 1, Phase::Running, SOON).await;
    let done = server.until_vm("done", vm.uuid, SOON, |r| r.agent && r.boot_progress.as_deref() == Some("done")).await;
    assert!(done.started_at.is_some() && done.boot_epoch == 1);

    server.want(want(&vm, 2, RunState::Running, 2));
    let restarted = server.applied(vm.uuid, 2, Phase::Running, SOON).await;
    assert_eq!(restarted.boot_epoch, 2);

    let mut stop = want(&vm, 3, RunState::Stopped, 2);
    stop.stop = StopMode::Graceful { grace_s: 10 };
    server.want(stop);
    server.applied(vm.uuid, 3, Phase::Stopped, SOON).await;
    // An older generation comes late: nothing happens.
    server.want(want(&vm, 2, RunState::Running, 2));
    server.want(want(&vm, 4, RunState::Absent, 2));
    server.applied(vm.uuid, 4, Phase::Absent, SOON).await;
    {
        let world = server.world();
        let phases = &world.phases[&vm.uuid];
        assert_eq!(phases.last(), Some(&Phase::Absent));
        assert!(phases.contains(&Phase::Preparing) && phases.contains(&Phase::Stopping), "{phases:?}");
        assert_eq!(world.registered[0].hypervisor, "simulated");
        assert!(world.health.as_ref().is_some_and(|h| h.ready));
    }
    node.stop().await.expect("stops");
    assert_eq!(std::fs::read_dir(dir.path().join("node/simulated")).expect("list").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_session_is_registered_again_with_everything() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let _node = RunningNode::start(config(&server, dir.path(), 1));
    let (vm, gone) = (spec("simulated"), spec("simulated"));
    server.want(want(&vm, 1, RunState::Running, 1));
    server.want(want(&gone, 1, RunState::Absent, 1));
    server.applied(vm.uuid, 1, Phase::Running, SOON).await;
    server.applied(gone.uuid, 1, Phase::Absent, SOON).await;
    server.world().reports.clear();
    server.forget_session();
    server.until("registered twice", SOON, |w| w.registered.len() == 2).await;
    server.applied(vm.uuid, 1, Phase::Running, SOON).await;
    server.applied(gone.uuid, 1, Phase::Absent, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_in_any_phase_goes_on_from_its_files() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    for phase in [Phase::Preparing, Phase::Starting, Phase::Running] {
        let vm = spec("simulated");
        let node = RunningNode::start(config(&server, dir.path(), 60));
        server.want(want(&vm, 1, RunState::Running, 1));
        server.until_vm("on its way", vm.uuid, SOON, |r| r.phase == phase).await;
        node.kill().await;
        server.world().reports.clear();
        let node = RunningNode::start(config(&server, dir.path(), 60));
        server.until_vm("done", vm.uuid, SOON, |r| r.boot_progress.as_deref() == Some("done")).await;
        assert_eq!(server.report_of(vm.uuid).expect("reported").restarts, 0);
        server.want(want(&vm, 2, RunState::Stopped, 1));
        server.until_vm("stopping", vm.uuid, SOON, |r| r.phase == Phase::Stopping).await;
        node.kill().await;
        let node = RunningNode::start(config(&server, dir.path(), 60));
        server.applied(vm.uuid, 2, Phase::Stopped, SOON).await;
        server.want(want(&vm, 3, RunState::Absent, 1));
        server.until_vm("removing", vm.uuid, SOON, |r| r.generation == 3).await;
        node.kill().await;
        let node = RunningNode::start(config(&server, dir.path(), 60));
        server.applied(vm.uuid, 3, Phase::Absent, SOON).await;
        node.kill().await;
    }
    assert_eq!(std::fs::read_dir(dir.path().join("node/simulated")).expect("list").count(), 0);
}

fn with_services(vm: &VmSpec, services: &str) -> VmSpec {
    let file = format!("services: {{{services}}}");
    let app = serde_json::json!({ "name": "app", "runner": "docker-compose", "docker_compose_file": file });
    VmSpec { app_compose: app.to_string(), ..vm.clone() }
}

/// A guest that does not hear that it is to power off, asked to.
async fn asked(server: &FakeServer) -> VmSpec {
    let vm = with_services(&spec("simulated"), &format!("{DEAF_SERVICE}: {{image: x}}"));
    server.want(want(&vm, 1, RunState::Running, 1));
    server.until_vm("done", vm.uuid, SOON, |r| r.boot_progress.as_deref() == Some("done")).await;
    server.want(DesiredVm { stop: StopMode::Asked { grace_s: 0 }, ..want(&vm, 2, RunState::Stopped, 1) });
    server.until_vm("stopping", vm.uuid, SOON, |r| r.generation == 2 && r.phase == Phase::Stopping).await;
    vm
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_only_asked_is_left_as_it_is() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let _node = RunningNode::start(config(&server, dir.path(), 1));
    let vm = asked(&server).await;
    let began = server.report_of(vm.uuid).expect("reported").started_at;
    let stays =
        |r: &VmReport| matches!(&r.outcome, Outcome::Failed { code, retryable: false, .. } if code == GUEST_STAYS);
    let report = server.until_vm("given up", vm.uuid, GIVES_UP, stays).await;
    assert_eq!(report.phase, Phase::Stopping);
    // It is to run on, and does.
    server.want(DesiredVm { stop: StopMode::Asked { grace_s: 0 }, ..want(&vm, 3, RunState::Running, 1) });
    let report = server.applied(vm.uuid, 3, Phase::Running, SOON).await;
    assert_eq!((report.started_at, report.restarts), (began, 0), "the same machine");
    let told = |r: &VmReport| r.app_revision == 3;
    server.until_vm("it is told of what is wanted", vm.uuid, SOON, told).await;
    server.want(want(&vm, 4, RunState::Absent, 1));
    server.applied(vm.uuid, 4, Phase::Absent, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_asked_is_ended_when_it_may_be_and_one_that_hears_goes() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let _node = RunningNode::start(config(&server, dir.path(), 1));
    let vm = asked(&server).await;
    server.want(DesiredVm { stop: StopMode::Hard, ..want(&vm, 3, RunState::Stopped, 1) });
    server.applied(vm.uuid, 3, Phase::Stopped, SOON).await;
    let vm = spec("simulated");
    server.want(want(&vm, 1, RunState::Running, 1));
    server.applied(vm.uuid, 1, Phase::Running, SOON).await;
    server.want(DesiredVm { stop: StopMode::Asked { grace_s: 600 }, ..want(&vm, 2, RunState::Stopped, 1) });
    server.applied(vm.uuid, 2, Phase::Stopped, SOON).await;
}

async fn ids(server: &FakeServer, id: u64, vm: &VmSpec) -> BTreeMap<String, String> {
    let got = server.stream(vec![StreamRequest::Containers { id, vm: vm.uuid }], |got| !got.is_empty()).await;
    let Streamed::Reply(StreamReply::Containers { containers, .. }) = &got[0] else { panic!("{got:?}") };
    containers.iter().map(|c| (c.names[0].clone(), c.id.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_takes_another_app_over_or_says_why_not() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let node = RunningNode::start(config(&server, dir.path(), 20));
    let vm = with_services(&spec("simulated"), "a: {image: one}, b: {image: one}");
    let up = |r: &VmReport, generation| r.app_revision == generation && r.boot_progress.as_deref() == Some("done");
    server.want(want(&vm, 1, RunState::Running, 1));
    let first = server.until_vm("up", vm.uuid, SOON, |r| up(r, 1)).await;
    let before = ids(&server, 1, &vm).await;

    let bad = with_services(&vm, &format!("a: {{image: one}}, {FAILING_SERVICE}: {{image: one}}"));
    server.want(want(&bad, 2, RunState::Running, 1));
    let failed = server.until_vm("failed", vm.uuid, SOON, |r| r.boot_error.is_some()).await;
    assert_eq!((failed.generation, failed.app_revision, failed.phase), (2, 2, Phase::Running));
    assert_eq!(failed.outcome, Outcome::Applied);

    let good = with_services(&vm, "a: {image: one}, b: {image: two}");
    server.want(want(&good, 3, RunState::Running, 1));
    let well = server.until_vm("up again", vm.uuid, SOON, |r| up(r, 3)).await;
    assert_eq!((well.boot_error, well.started_at, well.boot_epoch), (None, first.started_at, 1));
    let after = ids(&server, 2, &vm).await;
    assert_eq!(before["/app-a-1"], after["/app-a-1"]);
    assert_ne!(before["/app-b-1"], after["/app-b-1"]);

    // Wanted while the node is down: told when it is back. The same app again: only its generation is news.
    node.kill().await;
    server.want(want(&vm, 4, RunState::Running, 1));
    let node = RunningNode::start(config(&server, dir.path(), 20));
    server.until_vm("up after a kill", vm.uuid, SOON, |r| up(r, 4)).await;
    server.want(want(&vm, 5, RunState::Running, 1));
    let same = server.until_vm("the same", vm.uuid, SOON, |r| r.generation == 5 && r.app_revision == 5).await;
    assert_eq!((same.boot_progress.as_deref(), same.started_at), (Some("done"), first.started_at));
    node.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_a_fault_that_passes() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let _node = RunningNode::start(config(&server, dir.path(), 1));
    let vm = spec("none such");
    server.want(want(&vm, 1, RunState::Running, 1));
    let failed = server.until_vm("failed", vm.uuid, SOON, |r| matches!(r.outcome, Outcome::Failed { .. })).await;
    assert!(matches!(failed.outcome, Outcome::Failed { ref code, retryable: true, .. } if code == "image_missing"));
    let mut good = want(&vm, 2, RunState::Running, 1);
    good.spec.as_mut().expect("a spec").image = "simulated".into();
    server.want(good);
    server.applied(vm.uuid, 2, Phase::Running, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_containers_come_over_the_stream() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let _node = RunningNode::start(config(&server, dir.path(), 1));
    let vm = spec("simulated");
    server.want(want(&vm, 1, RunState::Running, 1));
    server.applied(vm.uuid, 1, Phase::Running, SOON).await;
    let options = holdfast_model::guest::LogOptions { tail: Some(2), ..Default::default() };
    let log = |id, source| StreamRequest::Logs { id, vm: vm.uuid, source, options: options.clone() };
    let requests = vec![
        StreamRequest::Containers { id: 1, vm: vm.uuid },
        StreamRequest::Containers { id: 2, vm: uuid::Uuid::new_v4() },
        log(3, LogSource::Container("app-web-1".into())),
        log(4, LogSource::Container("none".into())),
        StreamRequest::Close { id: 99 },
        StreamRequest::Stats { id: 5, vm: vm.uuid },
        StreamRequest::Stats { id: 6, vm: uuid::Uuid::new_v4() },
    ];
    let got = server.stream(requests, |got| got.iter().filter(|s| matches!(s, Streamed::Reply(_))).count() == 6).await;
    let (mut text, mut containers, mut errors) = (String::new(), 0, Vec::new());
    for item in got {
        match item {
            Streamed::Data { id: 3, channel: 1, data } => text.push_str(&String::from_utf8_lossy(&data)),
            Streamed::Reply(StreamReply::Containers { id: 1, containers: list }) => containers = list.len(),
            Streamed::Reply(StreamReply::Stats { id: 5, stats }) => {
                let (size, machine) = ((stats.num_cpus, stats.total_memory >> 20), (vm.vcpu, vm.memory_mb));
                assert_eq!(size, machine);
                assert!(stats.cpu_model.contains("no machine"), "a simulation says that it is one: {stats:?}");
            }
            Streamed::Reply(StreamReply::End { id, error }) => errors.push((id, error.map(|e| e.code))),
            other => panic!("{other:?}"),
        }
    }
    errors.sort();
    assert_eq!((text.as_str(), containers), ("hello line 8\nhello line 9\n", 2));
    let expected = [
        (2, Some("not_running".to_owned())),
        (3, None),
        (4, Some("no_such_container".to_owned())),
        (6, Some("not_running".to_owned())),
    ];
    assert_eq!(errors, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_folder_are_one_too_many() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let _node = RunningNode::start(config(&server, dir.path(), 1));
    server.until("registered", SOON, |w| !w.registered.is_empty()).await;
    let second = holdfast_node::run(config(&server, dir.path(), 1), Default::default()).await;
    assert!(matches!(second, Err(holdfast_node::Error::Locked(_))), "{second:?}");
}

/// Load: what one create costs, all steps, reports and files included.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_vms_are_little_work() {
    let (server, dir) = (FakeServer::start().await, tempfile::tempdir().expect("a folder"));
    let _node = RunningNode::start(config(&server, dir.path(), 1));
    server.until("registered", SOON, |w| !w.registered.is_empty()).await;
    let begun = std::time::Instant::now();
    let vms: Vec<_> = (0..2000).map(|_| spec("simulated")).collect();
    vms.iter().for_each(|vm| server.want(want(vm, 1, RunState::Running, 1)));
    let done = |r: &holdfast_model::node::VmReport| r.boot_progress.as_deref() == Some("done");
    let limit = Duration::from_secs(60);
    server.until("all done", limit, |w| w.reports.len() == 2000 && w.reports.values().all(done)).await;
    eprintln!("2000 VMs in {:?}", begun.elapsed());
    vms.iter().for_each(|vm| server.want(want(vm, 2, RunState::Absent, 1)));
    let absent = |r: &holdfast_model::node::VmReport| r.phase == Phase::Absent;
    server.until("all absent", limit, |w| w.reports.values().all(absent)).await;
    assert_eq!(std::fs::read_dir(dir.path().join("node/simulated")).expect("list").count(), 0);
}
