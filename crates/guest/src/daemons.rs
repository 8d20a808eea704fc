//! containerd and dockerd: started fast, kept alive, and asked whether they answer.
//!
//! The one rule: docker never touches the packet filter. Its own rules cost four seconds of an emulated boot; ports go
//! through docker-proxy, and the way out is the one rule that [`crate::init::network`] sets.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::{self, Child};
use crate::tail::Tail;
use crate::{engine, init};

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const CONTAINERD_CONFIG: &str = "/run/holdfast/containerd.toml";
/// Plugins that docker has no use for; each would look around at every start.
const CONTAINERD_TOML: &str = r#"version = 2
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri",
]
"#;
const DOCKERD: &[&str] = &[
    "--host=unix:///run/docker.sock",
    "--data-root=/data/docker",
    "--exec-root=/run/docker",
    "--pidfile=/run/docker.pid",
    "--containerd=/run/containerd/containerd.sock",
    "--storage-driver=overlay2",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-masq=false",
    "--add-runtime=crun=/usr/bin/crun",
    "--default-runtime=crun",
    "--log-driver=json-file",
    "--log-opt=max-size=10m",
    "--log-opt=max-file=3",
    "--log-level=warn",
    "--shutdown-timeout=5",
];

#[derive(Default)]
struct Daemons {
    /// Running ones, in the order in which they were started.
    children: Mutex<Vec<(&'static str, Arc<Child>)>>,
    stopping: AtomicBool,
    /// Somebody keeps dockerd running.
    docker: AtomicBool,
}

static DAEMONS: LazyLock<Daemons> = LazyLock::new(Daemons::default);
static WORDS: LazyLock<Arc<Tail>> = LazyLock::new(|| Arc::new(Tail::new(64 * 1024)));

/// Starts containerd. Its data is only about what runs now, so it lies in memory.
pub fn start_containerd() {
    let _ = fs::write(CONTAINERD_CONFIG, CONTAINERD_TOML);
    supervise("containerd", &["--config", CONTAINERD_CONFIG, "--log-level", "warn"]);
}

/// Starts dockerd, if that was not done before, and waits until it answers. The error holds its last words.
pub fn start_docker(limit: Duration) -> Result<(), String> {
    let end = Instant::now() + limit;
    while !Path::new(CONTAINERD_SOCKET).exists() {
        if Instant::now() > end {
            return Err(format!("containerd did not start.\n{}", WORDS.last_lines(10)));
        }
        thread::sleep(Duration::from_millis(20));
    }
    if !DAEMONS.docker.swap(true, Ordering::SeqCst) {
        supervise("dockerd", DOCKERD);
    }
    loop {
        if engine::request("GET", "/_ping", Duration::from_secs(5)).is_ok_and(|a| a.status == 200) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("docker did not start.\n{}", WORDS.last_lines(10)));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Keeps one daemon running until [`stop`].
fn supervise(name: &'static str, arguments: &'static [&'static str]) {
    init::spawn(name, move || {
        let mut wait = Duration::from_millis(500);
        loop {
            let mut command = Command::new(name);
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.current_dir("/").env_clear().env("PATH", init::PATH).env("HOME", "/root");
            let started = Instant::now();
            match process::spawn(&mut command) {
                Ok(child) => {
                    let child = Arc::new(process::follow(child, &WORDS));
                    lock().push((name, Arc::clone(&child)));
                    let code = child.wait();
                    lock().retain(|(_, c)| !Arc::ptr_eq(c, &child));
                    if DAEMONS.stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    init::console(&format!("{name} ended with {code}"));
                }
                Err(error) => init::console(&error.to_string()),
            }
            wait = if started.elapsed() > Duration::from_secs(60) { Duration::from_millis(500) } else { wait * 2 };
            thread::sleep(wait.min(Duration::from_secs(30)));
        }
    });
}

fn lock() -> std::sync::MutexGuard<'static, Vec<(&'static str, Arc<Child>)>> {
    DAEMONS.children.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the daemons, the last started first.
pub fn stop(limit: Duration) {
    DAEMONS.stopping.store(true, Ordering::SeqCst);
    let children: Vec<_> = lock().iter().rev().cloned().collect();
    for (_, child) in children {
        child.signal(Signal::TERM);
        if child.wait_for(limit).is_none() {
            child.signal(Signal::KILL);
        }
    }
}
