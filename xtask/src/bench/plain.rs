//! A VM started by hand: the node's own QEMU command line, fresh disks of the same kind, and a bare host side of the
//! guest protocol.
//!
//! The one rule: it does for the guest exactly what the guest needs to come up, and nothing else.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use holdfast_harness::client::Client;
use holdfast_harness::{free_port, process, until};
use serde_json::{Value, json};

use super::accept::milliseconds;

const LIMIT: Duration = Duration::from_secs(300);
/// The agent's port, in the words of the protocol.
const AGENT_PORT: &str = "org.holdfast.agent.0";

/// Milliseconds after the start of QEMU, and what the guest says of itself (milliseconds after the start of its kernel).
pub struct Plain {
    pub agent: f64,
    pub app_up: f64,
    pub answers: f64,
    pub guest: Vec<(String, f64)>,
}

pub struct CommandLine {
    arguments: Vec<String>,
    vm: PathBuf,
    copy: PathBuf,
    port: u16,
}

impl CommandLine {
    /// That of the only VM below `folder`, moved to `copy` and to a host port of its own.
    pub fn of_vm(folder: &Path, copy: &Path) -> Result<Self> {
        let [id] = process::vms_of(folder)[..] else { bail!("there is not exactly one VM in {}", folder.display()) };
        // File names on it are relative to the VM's folder.
        let vm = process::working_folder(id).context("QEMU has a working folder")?;
        let port = free_port()?;
        let arguments = process::arguments(id).into_iter().map(|argument| move_port(&argument, port)).collect();
        Ok(Self { arguments, vm, copy: copy.to_owned(), port })
    }

    pub fn accelerator(&self) -> String {
        let after = self.arguments.iter().skip_while(|a| *a != "-accel").nth(1);
        after.map_or("?", |a| a.split(',').next().unwrap_or("?")).to_owned()
    }

    /// Fresh disks like those of the VM: same base image, same size, nothing written yet. Other files are copied.
    pub fn make_disks(&self) -> Result<()> {
        let _ = fs::remove_dir_all(&self.copy);
        fs::create_dir_all(&self.copy)?;
        for entry in fs::read_dir(&self.vm)?.flatten() {
            let (from, to) = (entry.path(), self.copy.join(entry.file_name()));
            if from.extension().is_some_and(|e| e == "qcow2") {
                make_disk(&from, &to)?;
            } else if entry.file_type()?.is_file() {
                fs::copy(&from, &to)?;
            }
        }
        Ok(())
    }

    fn agent_socket(&self) -> Result<PathBuf> {
        let port =
            self.arguments.iter().find(|a| a.contains(AGENT_PORT)).context("no agent port on the command line")?;
        let chardev = property(port, "chardev").context("the agent port has no chardev")?;
        let socket = self.arguments.iter().find(|a| a.starts_with("socket") && property(a, "id") == Some(chardev));
        let path = property(socket.context("no agent socket")?, "path").context("the agent socket has no path")?;
        Ok(self.copy.join(path))
    }
}

fn property<'a>(argument: &'a str, name: &str) -> Option<&'a str> {
    argument.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

/// Points the first forwarded host port at `port`, and drops others.
fn move_port(argument: &str, port: u16) -> String {
    let mut first = true;
    let parts = argument.split(',').filter_map(|part| {
        let Some(rule) = part.strip_prefix("hostfwd=") else { return Some(part.to_owned()) };
        let (_, guest) = rule.split_once('-')?;
        std::mem::take(&mut first).then(|| format!("hostfwd=tcp:127.0.0.1:{port}-{guest}"))
    });
    parts.collect::<Vec<_>>().join(",")
}

fn make_disk(like: &Path, disk: &Path) -> Result<()> {
    let output = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(like).output()?;
    let info: Value = serde_json::from_slice(&output.stdout).context("qemu-img info")?;
    let size = info["virtual-size"].as_u64().context("a disk has a size")?.to_string();
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2"]);
    if let (Some(base), Some(format)) =
        (info["full-backing-filename"].as_str(), info["backing-filename-format"].as_str())
    {
        create.args(["-b", base, "-F", format]);
    }
    let status = create.arg(disk).arg(size).status()?;
    if status.success() { Ok(()) } else { bail!("qemu-img create: {status}") }
}

struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A VM that was just started, with the host's end of its agent's port.
struct Begun {
    vm: Vm,
    guest: Guest,
    start: Instant,
}

fn begin(line: &CommandLine) -> Result<Begun> {
    let socket = line.agent_socket()?;
    let _ = fs::remove_file(&socket);
    let log = fs::File::create(line.copy.join("by-hand.log"))?;
    let start = Instant::now();
    let mut command = Command::new(&line.arguments[0]);
    command
        .args(&line.arguments[1..])
        .current_dir(&line.copy)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut vm = Vm(command.spawn()?);
    let stream = until(LIMIT, "QEMU opens the agent's socket", || {
        if let Some(status) = vm.0.try_wait()? {
            let log = fs::read_to_string(line.copy.join("by-hand.log")).unwrap_or_default();
            bail!("QEMU ended with {status}: {log}");
        }
        Ok(UnixStream::connect(&socket).ok())
    })?;
    let mut guest = Guest::new(stream)?;
    guest.send(&json!({"do": "hello", "session": "bench"}))?;
    Ok(Begun { vm, guest, start })
}

/// Milliseconds until the agent answers; then the VM is ended.
pub fn to_agent(line: &CommandLine) -> Result<f64> {
    let mut begun = begin(line)?;
    while begun.guest.receive(begun.start)?["is"] != "hello_ack" {}
    let took = milliseconds(begun.start);
    drop(begun.vm);
    Ok(took)
}

pub fn boot(line: &CommandLine, compose: &str) -> Result<Plain> {
    let Begun { vm: _vm, mut guest, start } = begin(line)?;
    let (mut agent, mut app_up) = (None, None);
    let mut timeline = Vec::new();
    while app_up.is_none() {
        let message = guest.receive(start)?;
        let state = match message["is"].as_str() {
            Some("hello_ack") => {
                agent.get_or_insert_with(|| milliseconds(start));
                &message["state"]
            }
            Some("need_config") => {
                guest.send(&config(compose))?;
                continue;
            }
            Some("need_keys") => {
                let key = "11".repeat(32);
                guest.send(&json!({"do": "keys", "env_key": key, "disk_key": key}))?;
                continue;
            }
            _ => &message,
        };
        if let Some(error) = state["boot_error"]["message"].as_str() {
            bail!("the guest could not boot: {error}");
        }
        if let Some(points) = state["timeline"].as_array() {
            timeline = points.iter().filter_map(|p| Some((p[0].as_str()?.to_owned(), p[1].as_f64()?))).collect();
        }
        if state["boot_progress"] == "done" {
            app_up = Some(milliseconds(start));
        }
    }
    let web = Client::new(format!("http://127.0.0.1:{}", line.port), "");
    let answers = until(LIMIT, "the app answers", || {
        Ok(web.send("GET", "/", &[], None).ok().filter(|a| a.status == 200).map(|_| milliseconds(start)))
    })?;
    Ok(Plain {
        agent: agent.context("the agent never answered")?,
        app_up: app_up.unwrap_or(answers),
        answers,
        guest: timeline,
    })
}

fn config(compose: &str) -> Value {
    let app = json!({
        "manifest_version": 2, "name": "bench", "runner": "docker-compose", "docker_compose_file": compose,
        "allowed_envs": [], "public_logs": true, "public_sysinfo": true, "kms_enabled": true, "storage_fs": "ext4",
    });
    json!({
        "do": "config", "vm_uuid": "00000000-0000-4000-8000-000000000000", "app_id": "00".repeat(20),
        "instance_id": "00".repeat(20), "hostname": "bench", "app_compose": app.to_string(),
        "now": "2026-01-01T00:00:00.000000Z",
    })
}

struct Guest {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Guest {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        let lines = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, lines })
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        // The newline in front ends whatever half a line the guest may have seen before.
        Ok(self.stream.write_all(format!("\n{message}\n").as_bytes())?)
    }

    fn receive(&mut self, start: Instant) -> Result<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line)? == 0 {
                bail!("QEMU ended {:.0} ms after its start", milliseconds(start));
            }
            if let Ok(message) = serde_json::from_str(line.trim()) {
                return Ok(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_ports() {
        let line = "user,id=n,hostfwd=tcp:127.0.0.1:20000-:80,hostfwd=tcp:127.0.0.1:20001-:81";
        assert_eq!(move_port(line, 5), "user,id=n,hostfwd=tcp:127.0.0.1:5-:80");
        assert_eq!(property(line, "id"), Some("n"));
    }
}
