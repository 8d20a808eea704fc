//! Runs the app: a compose file, or a script.
//!
//! The one rule: a boot may be the first or the hundredth, and the app may be running already. What is written is written
//! again each time, and compose is asked for the same `up`, which does nothing for containers that are as they should be.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_model::compose::{AppCompose, PublishedPort, published_ports};
use holdfast_model::guest::Container;
use rustix::process::Signal;

use crate::env::Env;
use crate::process::{self, Child};
use crate::session::{self, Agent};
use crate::tail::Tail;
use crate::{credentials, engine, init};

/// The app's folder: relative volumes of its compose file live here, on the data disk.
const APP: &str = "/data/app";
/// What we keep beside it.
const KEPT: &str = "/data/.holdfast";
const PROJECT: &str = "/data/.holdfast/project";
/// Where apps expect the text that their owner gave the VM.
const USER_CONFIG: &str = "/dstack/.user-config";
/// In tmpfs.
const ENV_FILE: &str = "/run/holdfast/env";
const SCRIPTS: &str = "/run/holdfast";
/// Name of the script's log, and of the container it is listed as.
const SCRIPT_NAME: &str = "app";
const SCRIPT_LOG: usize = 1024 * 1024;
const STILL_RUNS: i32 = -1;

/// The script of runner `bash`.
struct Script {
    log: Arc<Tail>,
    child: Mutex<Option<Arc<Child>>>,
    started: i64,
    code: AtomicI32,
    /// It was stopped: what ends now is not started again.
    stopping: AtomicBool,
}

static SCRIPT: Mutex<Option<Arc<Script>>> = Mutex::new(None);

fn script() -> Option<Arc<Script>> {
    SCRIPT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A command that sees the app's env and our paths, and nothing else.
fn app_command(program: &str, env: &Env) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", init::PATH).env("HOME", "/root").env("DOCKER_HOST", engine::DOCKER_HOST);
    command.env("DOCKER_CONFIG", credentials::DOCKER_CONFIG);
    command.envs(env.pairs()).current_dir(APP);
    command
}

/// Makes the app's folder, with the env as compose files expect to find it.
pub fn prepare(env: &Env) -> Result<(), String> {
    fs::create_dir_all(APP).map_err(|e| format!("{APP}: {e}"))?;
    env.write(Path::new(ENV_FILE)).map_err(|e| format!("env file: {e}"))?;
    let link = Path::new(APP).join(".env");
    let _ = fs::remove_file(&link);
    symlink(ENV_FILE, &link).map_err(|e| format!("{}: {e}", link.display()))
}

/// Written in place, so that a container which mounts the file sees the new text.
pub fn write_user_config(text: Option<&str>) -> Result<(), String> {
    let path = Path::new(USER_CONFIG);
    let written = match (text, path.parent()) {
        (Some(text), Some(folder)) => fs::create_dir_all(folder).and_then(|()| fs::write(path, text)),
        (None, _) if path.exists() => fs::write(path, ""),
        _ => Ok(()),
    };
    written.map_err(|e| format!("{USER_CONFIG}: {e}"))
}

/// Sources a script in bash; what it exports is the app's from then on.
pub fn run_script(agent: &Agent, name: &str, text: &str, env: &mut Env) -> Result<(), String> {
    let path = format!("{SCRIPTS}/{name}.sh");
    let exported = format!("{SCRIPTS}/{name}.exported");
    fs::write(&path, text).map_err(|e| format!("{path}: {e}"))?;
    let tail = Arc::new(Tail::new(64 * 1024));
    let mut bash = app_command("bash", env);
    bash.args(["-c", "source \"$1\" && env -0 > \"$2\"", "bash", &path, &exported]);
    let code = process::run_unless(&mut bash, &tail, || agent.superseded()).map_err(|e| e.to_string())?;
    tail.settle(Duration::from_millis(200));
    if code != 0 {
        return Err(format!("the script ended with {code}.\n{}", tail.last_lines(15)));
    }
    let printed = zeroize::Zeroizing::new(fs::read(&exported).unwrap_or_default());
    let _ = fs::remove_file(&exported);
    env.absorb(&printed);
    Ok(())
}

/// Loads the container images that came with the guest image, each once per data disk.
pub fn load_images() -> Result<(), String> {
    const SOURCE: &str = "/usr/share/holdfast/images";
    const LOADED: &str = "/data/.holdfast/loaded";
    fs::create_dir_all(KEPT).map_err(|e| format!("{KEPT}: {e}"))?;
    let sums = fs::read_to_string(format!("{SOURCE}/sums")).unwrap_or_default();
    let loaded = fs::read_to_string(LOADED).unwrap_or_default();
    let missing = sums.lines().filter(|line| !loaded.lines().any(|l| l == *line));
    let loads: Vec<_> = missing
        .filter_map(|line| line.split_once("  "))
        .map(|(_, name)| {
            let path = format!("{SOURCE}/{name}");
            thread::spawn(move || {
                let file = fs::File::open(&path).map_err(|e| format!("{path}: {e}"))?;
                let said = engine::upload("/images/load?quiet=1", file, Duration::from_secs(300));
                said.map_err(|e| format!("loading {path}: {e}"))
            })
        })
        .collect();
    if loads.is_empty() {
        return Ok(());
    }
    for load in loads {
        let said = load.join().map_err(|_| "loading an image: out of memory")??;
        if let Some(error) = said.lines().find(|line| line.contains("\"errorDetail\"")) {
            return Err(format!("loading an image: {error}"));
        }
    }
    fs::write(LOADED, sums).map_err(|e| format!("{LOADED}: {e}"))
}

/// How often compose is asked before its failure is the boot's: a registry may be slow to answer, and after a guest that
/// ended hard docker may still be clearing away what ran.
const COMPOSE_TRIES: u32 = 3;

/// `docker compose up`. The error holds its last words.
pub fn compose_up(agent: &Agent, app: &AppCompose, env: &Env) -> Result<(), String> {
    let yaml = app.docker_compose_file.as_deref().ok_or("the app has no docker_compose_file")?;
    let ports = published_ports(yaml).map_err(|e| e.message)?;
    let write = |name: &str, text: &str| fs::write(Path::new(APP).join(name), text).map_err(|e| format!("{name}: {e}"));
    write("docker-compose.yaml", yaml)?;
    let implicit = implicit_ports(&ports);
    if let Some(text) = &implicit {
        write(".holdfast-ports.yaml", text)?;
    }
    let project = project(app)?;
    let mut pause = Duration::from_secs(1);
    for attempt in 1.. {
        let mut compose = compose_command(&project, env);
        compose.args(["--env-file", ENV_FILE, "-f", "docker-compose.yaml"]);
        if implicit.is_some() {
            compose.args(["-f", ".holdfast-ports.yaml"]);
        }
        compose.args(["up", "-d", "--remove-orphans"]);
        let tail = Arc::new(Tail::new(64 * 1024));
        let code = process::run_unless(&mut compose, &tail, || agent.superseded()).map_err(|e| e.to_string())?;
        tail.settle(Duration::from_millis(200));
        if code == 0 {
            return Ok(());
        }
        if attempt == COMPOSE_TRIES || agent.superseded() {
            return Err(format!("docker compose up ended with {code}.\n{}", tail.last_lines(15)));
        }
        init::console(&format!("docker compose up ended with {code}; trying again"));
        session::pause(pause, || agent.superseded());
        pause *= 4;
    }
    Ok(())
}

/// `docker compose down`: the app is to be run by something else.
pub fn compose_down(agent: &Agent, app: &AppCompose, env: &Env) -> Result<(), String> {
    let mut compose = compose_command(&project(app)?, env);
    compose.args(["down", "--remove-orphans"]);
    let tail = Arc::new(Tail::new(64 * 1024));
    let code = process::run_unless(&mut compose, &tail, || agent.superseded()).map_err(|e| e.to_string())?;
    tail.settle(Duration::from_millis(200));
    if code == 0 { Ok(()) } else { Err(format!("docker compose down ended with {code}.\n{}", tail.last_lines(15))) }
}

fn compose_command(project: &str, env: &Env) -> Command {
    let mut compose = app_command("docker-compose", env);
    compose.args(["--ansi", "never", "--progress", "plain", "-p", project]);
    // It lives for seconds: collecting garbage would only make them longer.
    compose.env("GOGC", "off").env("GOMEMLIMIT", "200MiB");
    compose
}

/// The name that compose knows the app by: that of its first boot, kept with the data disk. Under another one compose
/// would start a second app beside it, with new volumes.
fn project(app: &AppCompose) -> Result<String, String> {
    let kept = fs::read_to_string(PROJECT).unwrap_or_default();
    if !kept.is_empty() {
        return Ok(project_name(&kept));
    }
    let name = project_name(&app.name);
    let unfinished = format!("{PROJECT}.new");
    let keep = || {
        fs::create_dir_all(KEPT)?;
        fs::write(&unfinished, &name)?;
        fs::File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, PROJECT)
    };
    keep().map(|()| name.clone()).map_err(|e| format!("{PROJECT}: {e}"))
}

/// A compose file that gives the ports without a published number the one that the control plane forwards to.
fn implicit_ports(ports: &[PublishedPort]) -> Option<String> {
    let mut services: std::collections::BTreeMap<&str, Vec<String>> = Default::default();
    for port in ports.iter().filter(|p| p.implicit) {
        services.entry(&port.service).or_default().push(format!("{}:{}", port.vm_port, port.target));
    }
    let services: serde_json::Map<_, _> =
        services.into_iter().map(|(name, ports)| (name.to_owned(), serde_json::json!({ "ports": ports }))).collect();
    // JSON is YAML.
    (!services.is_empty()).then(|| serde_json::json!({ "services": services }).to_string())
}

/// What compose accepts as a project's name, from any name.
fn project_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().map(plain).take(63).collect();
    match name.trim_start_matches(['-', '_']) {
        "" => "app".to_owned(),
        name => name.to_owned(),
    }
}

/// Starts the script of runner `bash`; it is started again, later each time, while it ends with an error.
pub fn start_script(app: &AppCompose, env: Env) -> Result<(), String> {
    let text = app.bash_script.as_deref().ok_or("the app has no bash_script")?;
    let path = format!("{SCRIPTS}/main.sh");
    fs::write(&path, text).map_err(|e| format!("{path}: {e}"))?;
    let script = Arc::new(Script {
        log: Arc::new(Tail::new(SCRIPT_LOG)),
        child: Mutex::new(None),
        started: crate::tail::now().0 / 1_000_000,
        code: AtomicI32::new(STILL_RUNS),
        stopping: AtomicBool::new(false),
    });
    *SCRIPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&script));
    let start = move |env: &Env| {
        let mut bash = app_command("bash", env);
        bash.arg(&path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process::spawn(&mut bash).map_err(|e| e.to_string())
    };
    let mut child = Arc::new(process::follow(start(&env)?, &script.log));
    init::spawn("script", move || {
        let mut wait = Duration::from_secs(1);
        loop {
            *script.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&child));
            if script.stopping.load(Ordering::SeqCst) {
                // Whoever stopped it knew only the one before.
                child.signal(Signal::KILL);
            }
            let started = Instant::now();
            let code = child.wait();
            script.log.settle(Duration::from_millis(200));
            script.code.store(code, Ordering::SeqCst);
            if script.stopping.load(Ordering::SeqCst) {
                break;
            }
            if code == 0 {
                script.log.push(2, b"holdfast: the script has ended\n");
                break;
            }
            wait = if started.elapsed() > Duration::from_secs(60) { Duration::from_secs(1) } else { wait };
            script
                .log
                .push(2, format!("holdfast: the script ended with {code}; again in {} s\n", wait.as_secs()).as_bytes());
            thread::sleep(wait);
            if script.stopping.load(Ordering::SeqCst) {
                break;
            }
            wait = (wait * 2).min(Duration::from_secs(60));
            match start(&env) {
                Ok(next) => child = Arc::new(process::follow(next, &script.log)),
                Err(error) => {
                    script.log.push(2, format!("holdfast: {error}\n").as_bytes());
                    break;
                }
            }
            script.code.store(STILL_RUNS, Ordering::SeqCst);
        }
        script.log.end();
    });
    Ok(())
}

/// The script in the form in which containers are listed.
pub fn script_as_container() -> Option<Container> {
    let script = script()?;
    let (state, status) = match script.code.load(Ordering::SeqCst) {
        STILL_RUNS => ("running".to_owned(), "Up".to_owned()),
        code => ("exited".to_owned(), format!("Exited ({code})")),
    };
    Some(Container {
        id: SCRIPT_NAME.to_owned(),
        names: vec![format!("/{SCRIPT_NAME}")],
        image: "bash".to_owned(),
        image_id: String::new(),
        command: "bash_script".to_owned(),
        created: script.started,
        state,
        status,
    })
}

pub fn script_log(name: &str) -> Option<Arc<Tail>> {
    script().filter(|_| name == SCRIPT_NAME).map(|s| Arc::clone(&s.log))
}

/// Stops the script, if there is one, killing it when it does not end within `grace`.
pub fn stop_script(grace: Duration) {
    let Some(script) = SCRIPT.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    script.stopping.store(true, Ordering::SeqCst);
    let child = script.child.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(child) = child {
        child.signal(Signal::TERM);
        if child.wait_for(grace).is_none() {
            child.signal(Signal::KILL);
            child.wait();
        }
    }
}

/// Stops the app, killing what does not end within `grace`.
pub fn stop(grace: Duration) {
    stop_script(grace);
    let stops: Vec<_> = crate::containers::list()
        .unwrap_or_default()
        .into_iter()
        .filter(|c| matches!(c.state.as_str(), "running" | "restarting" | "paused"))
        .map(|c| {
            thread::spawn(move || {
                let path = format!("/containers/{}/stop?t={}", c.id, grace.as_secs());
                engine::request("POST", &path, grace + Duration::from_secs(5)).map(|a| a.status)
            })
        })
        .collect();
    for stop in stops {
        let _ = stop.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_makes_a_project() {
        for (name, project) in
            [("hello", "hello"), ("My App!", "my-app-"), ("--x", "x"), ("ü", "app"), ("", "app"), ("9_a", "9_a")]
        {
            assert_eq!(project_name(name), project);
        }
    }

    #[test]
    fn implicit_ports_become_an_override() {
        let ports =
            published_ports("services:\n  a: {image: x, ports: ['80', '9000:90']}\n  b: {image: y, ports: [443]}\n")
                .unwrap();
        let text = implicit_ports(&ports).unwrap();
        assert_eq!(text, r#"{"services":{"a":{"ports":["80:80"]},"b":{"ports":["443:443"]}}}"#);
        assert_eq!(implicit_ports(&published_ports("services: {a: {image: x}}").unwrap()), None);
    }
}
