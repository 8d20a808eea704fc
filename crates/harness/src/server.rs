//! `holdfast serve` and `holdfast node` as child processes.
//!
//! The one rule: nothing outlives the value that started it, except what [`Server::leave_vms`] was told to leave.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::client::Client;
use crate::{free_port, process, until};

/// How long a process may take to end before it is killed, and the test fails.
const END: Duration = Duration::from_secs(60);

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Options {
    pub binary: PathBuf,
    pub data_dir: PathBuf,
    /// A free one when absent.
    pub port: Option<u16>,
    /// More options of `holdfast serve`.
    pub args: Vec<String>,
    /// More variables of its environment.
    pub env: Vec<(String, String)>,
    /// How long `/readyz` may take.
    pub ready_within: Duration,
    /// A file that the server sees as the kernel's boot id: to it, the host was restarted. Needs root.
    pub boot_id: Option<PathBuf>,
    /// Where its log goes; beside the data folder's own files when absent.
    pub log: Option<PathBuf>,
}

impl Options {
    pub fn new(binary: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            data_dir: data_dir.into(),
            port: None,
            args: Vec::new(),
            env: Vec::new(),
            ready_within: Duration::from_secs(120),
            boot_id: None,
            log: None,
        }
    }

    pub fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.args.extend(args.map(str::to_owned));
        self
    }
}

pub struct Server {
    options: Options,
    child: Option<Child>,
    port: u16,
    leave_vms: bool,
}

impl Server {
    /// Starts the server and waits until it can serve a deploy.
    pub fn start(options: Options) -> Result<Self> {
        let mut server = Self::launch(options)?;
        server.wait_ready()?;
        Ok(server)
    }

    /// Starts the server and waits for nothing.
    pub fn launch(options: Options) -> Result<Self> {
        fs::create_dir_all(&options.data_dir)?;
        let port = match options.port {
            Some(port) => port,
            None => free_port()?,
        };
        let mut server = Self { options, child: None, port, leave_vms: false };
        server.spawn()?;
        Ok(server)
    }

    /// Starts the process again, on the same port and folder.
    pub fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// What the next start takes for the kernel's boot id.
    pub fn set_boot_id(&mut self, file: PathBuf) {
        self.options.boot_id = Some(file);
    }

    fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = match &self.options.boot_id {
            Some(file) => with_boot_id(file, &self.options.binary),
            None => Command::new(&self.options.binary),
        };
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.options.data_dir)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(&self.options.args)
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is for us; the server is told by us, after its VMs.
            .process_group(0);
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.options.binary.display()))?);
        Ok(())
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let client = Client::new(self.url(), "");
        let ready = until(self.options.ready_within, "the server is ready", || {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().transpose()).transpose()? {
                bail!("the server ended with {status}");
            }
            Ok(client.get("/readyz").ok().filter(|answer| answer.status == 200))
        });
        ready.map(drop).with_context(|| format!("the end of its log:\n{}", self.log_end(40)))
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn data_dir(&self) -> &Path {
        &self.options.data_dir
    }

    pub fn id(&self) -> Option<i32> {
        self.child.as_ref().and_then(|c| i32::try_from(c.id()).ok())
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?.is_none(),
            None => false,
        })
    }

    pub fn key_path(&self) -> PathBuf {
        self.options.data_dir.join("admin.key")
    }

    /// A client that holds the first start's API key.
    pub fn client(&self) -> Result<Client> {
        let path = self.key_path();
        let key = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Client::new(self.url(), key.trim()))
    }

    /// Lies beside the data folder's own files and is no part of them, unless it was put elsewhere.
    pub fn log_path(&self) -> PathBuf {
        self.options.log.clone().unwrap_or_else(|| self.options.data_dir.join("serve.log"))
    }

    pub fn log_end(&self, lines: usize) -> String {
        tail(&self.log_path(), lines)
    }

    /// VMs go on when this value is dropped.
    pub fn leave_vms(&mut self) {
        self.leave_vms = true;
    }

    /// Asks the process to end, and waits. Its VMs keep running.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        end(self.child.take(), Signal::TERM, END)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        end(self.child.take(), Signal::KILL, END)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = end(self.child.take(), Signal::KILL, END);
        if std::thread::panicking() {
            eprintln!("--- the end of {}\n{}", self.log_path().display(), self.log_end(80));
        }
        if !self.leave_vms {
            process::kill_vms(&self.options.data_dir);
        }
    }
}

/// `holdfast node`, a node in a process of its own.
pub struct Node {
    binary: PathBuf,
    pub data_dir: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    token: String,
    child: Option<Child>,
}

impl Node {
    pub fn start(binary: &Path, server: &str, token: &str, data_dir: &Path, args: &[&str]) -> Result<Self> {
        Self::start_with(binary, server, token, data_dir, args, Vec::new())
    }

    /// With more variables in its environment.
    pub fn start_with(
        binary: &Path,
        server: &str,
        token: &str,
        data_dir: &Path,
        args: &[&str],
        env: Vec<(String, String)>,
    ) -> Result<Self> {
        fs::create_dir_all(data_dir)?;
        let mut all = vec!["--server".to_owned(), server.to_owned()];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        let (binary, data_dir) = (binary.to_owned(), data_dir.to_owned());
        let mut node = Self { binary, data_dir, args: all, env, token: token.to_owned(), child: None };
        node.restart()?;
        Ok(node)
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?.is_none(),
            None => false,
        })
    }

    pub fn restart(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.data_dir.join("node.log"))?;
        let mut command = Command::new(&self.binary);
        command.arg("node").args(&self.args).args(["--token", &self.token]).arg("--data-dir").arg(&self.data_dir);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child = Some(command.spawn().context("start the node")?);
        Ok(())
    }

    pub fn kill(&mut self) -> Result<ExitStatus> {
        end(self.child.take(), Signal::KILL, END)
    }

    pub fn stop(&mut self) -> Result<ExitStatus> {
        end(self.child.take(), Signal::TERM, END)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = end(self.child.take(), Signal::KILL, END);
        if std::thread::panicking() {
            eprintln!("--- the end of the node's log\n{}", tail(&self.data_dir.join("node.log"), 60));
        }
        process::kill_vms(&self.data_dir);
    }
}

/// `program` in a mount namespace of its own, where `file` lies over the kernel's boot id. Keeps the process id.
fn with_boot_id(file: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(file).arg(program);
    command
}

fn end(child: Option<Child>, signal: Signal, limit: Duration) -> Result<ExitStatus> {
    let Some(mut child) = child else { bail!("the process was ended before") };
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    process::signal(i32::try_from(child.id())?, signal)?;
    let ended = until(limit, "the process ends", || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended
}

/// The last lines of a text file; none of a device.
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = if path.is_file() { fs::read(path).unwrap_or_default() } else { Vec::new() };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
