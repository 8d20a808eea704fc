//! `cargo xtask up`: a cloud on this machine, with a sample app in it.
//!
//! The one rule: everything goes through what a user has, the binary and its public HTTP API, so that what is shown here is
//! what the user can do next.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use holdfast_harness::client::Client;
use holdfast_harness::server::{self, Server};
use holdfast_harness::{free_port, until};
use serde_json::json;

use crate::artifacts::{self, Build};
use crate::interrupt::{self, Interrupt};
use crate::{packages, root, timeline, ui};

const APP: &str = "hello";
const DEFAULT_PORT: u16 = 8440;
/// Docker images and emulated CPUs take their time.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Options {
    once: bool,
    port: u16,
    data_dir: PathBuf,
}

impl Options {
    pub fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { once: false, port: 0, data_dir: PathBuf::new() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--once" => options.once = true,
                "--port" => options.port = value()?.parse().context("--port: not a port number")?,
                "--data-dir" => options.data_dir = PathBuf::from(value()?),
                other => bail!("up has no option {other}"),
            }
        }
        if options.data_dir.as_os_str().is_empty() {
            options.data_dir = if options.once { once_folder() } else { default_folder()? };
        } else if options.once && options.data_dir.exists() {
            bail!("--once removes its data at the end, and {} exists", options.data_dir.display());
        }
        if options.port == 0 {
            options.port = if options.once { free_port()? } else { DEFAULT_PORT };
        }
        Ok(options)
    }
}

/// Where `holdfast` looks by default, so that its other commands find this server.
fn default_folder() -> Result<PathBuf> {
    let share = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    Ok(share.or(home).context("neither XDG_DATA_HOME nor HOME is set")?.join("holdfast"))
}

/// Short, because it holds the paths of unix sockets.
fn once_folder() -> PathBuf {
    std::env::temp_dir().join(format!("holdfast-{}", std::process::id()))
}

pub fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    packages::install(&[packages::RUN])?;
    ui::heading("Build");
    let binary = artifacts::all(Build::Release)?;
    if std::net::TcpListener::bind(("127.0.0.1", options.port)).is_err() {
        bail!("port {} is in use: is a server running already? Choose another with --port N.", options.port);
    }
    let interrupt = interrupt::catch()?;
    let mut cloud = Cloud::start(&options, binary)?;
    let result = cloud.present(&interrupt).and_then(|()| {
        if !options.once {
            ui::say(format!(
                "\nReady after {}. Ctrl-C stops the VMs and the server and keeps the data.",
                ui::seconds(start.elapsed())
            ));
            cloud.stay(&interrupt)?;
        }
        Ok(())
    });
    let log = result.is_err().then(|| cloud.server.log_end(40));
    let end = if options.once { cloud.remove() } else { cloud.shut_down() };
    match (result, log) {
        (Err(_), _) if interrupt.wanted() && !options.once => end,
        (Err(error), Some(log)) => Err(error.context(format!("the end of the server's log:\n{log}\n"))),
        (result, _) => result.and(end),
    }
}

struct Cloud {
    server: Server,
    client: Client,
}

impl Cloud {
    fn start(options: &Options, binary: PathBuf) -> Result<Self> {
        ui::heading("Server");
        let start = Instant::now();
        let mut settings = server::Options::new(binary, &options.data_dir);
        settings.port = Some(options.port);
        // The first start finds out by a probe boot whether hardware virtualisation works.
        let server = Server::start(settings)?;
        let client = server.client()?;
        let (url, key) = (server.url(), server.key_path());
        ui::say(format!("  {url} answers ({}), data in {}", ui::seconds(start.elapsed()), options.data_dir.display()));
        ui::say(format!("  API key: {}", key.display()));
        ui::say("\nFor the phala command line and the SDKs:");
        ui::say(format!("  export PHALA_CLOUD_API_PREFIX={url}/api/v1"));
        ui::say(format!("  export PHALA_CLOUD_API_KEY=$(cat {})", key.display()));
        ui::say("For holdfast's own commands:");
        ui::say(format!("  export HOLDFAST_URL={url} HOLDFAST_API_KEY=$(cat {})", key.display()));
        Ok(Self { server, client })
    }

    /// Brings the app up, and shows its answer.
    fn present(&mut self, interrupt: &Interrupt) -> Result<()> {
        ui::heading(format!("App \"{APP}\" (examples/hello)"));
        self.app_running(interrupt)?;
        let url = self.client.app_urls(APP)?.into_iter().next().context("the app publishes no port")?;
        let answer = until(ANSWER_LIMIT, &format!("{url} answers"), || {
            if interrupt.wanted() {
                bail!("interrupted");
            }
            Ok(self.client.send("GET", &url, &[], None).ok().filter(|a| a.status == 200))
        })?;
        ui::heading(format!("GET {url}"));
        ui::say(answer.text.trim_end());
        let base = &self.client.base;
        let key = self.server.key_path();
        ui::heading("What to try next");
        ui::say(format!("  phala cvms list; phala ps --cvm-id {APP}; phala cvms restart {APP}"));
        ui::say("  holdfast ops list; holdfast ops watch ID        (target/release/holdfast)");
        ui::say(format!("  curl -H \"X-API-Key: $(cat {})\" {base}/api/v1/cvms/{APP}/operations", key.display()));
        Ok(())
    }

    /// Deploys the app, or starts it if it is there from last time.
    fn app_running(&self, interrupt: &Interrupt) -> Result<()> {
        let found = self.client.get(&format!("/api/v1/cvms/{APP}"))?;
        if found.status == 404 {
            let compose = root().join("examples/hello/docker-compose.yml");
            let compose = fs::read_to_string(&compose).with_context(|| format!("read {}", compose.display()))?;
            let cvm = self.client.deploy(APP, &compose, &json!({}))?;
            return timeline::follow_newest(&self.client, &cvm, BOOT_LIMIT, interrupt).map(drop);
        }
        let found = found.ok()?;
        match found["status"].as_str().unwrap_or("?") {
            "running" => {
                ui::say("  it runs already");
                Ok(())
            }
            // Somebody, perhaps the run before this one, is changing it.
            status if status.ends_with("ing") || status.ends_with("down") => {
                ui::say(format!("  it is {status}"));
                timeline::follow_newest(&self.client, APP, BOOT_LIMIT, interrupt).map(drop)
            }
            status => {
                ui::say(format!("  it is here from last time ({status}); starting it"));
                self.client.post(&format!("/api/v1/cvms/{APP}/start"), None)?.ok()?;
                timeline::follow_newest(&self.client, APP, BOOT_LIMIT, interrupt).map(drop)
            }
        }
    }

    fn stay(&mut self, interrupt: &Interrupt) -> Result<()> {
        until(Duration::MAX, "", || {
            if interrupt.wanted() {
                return Ok(Some(()));
            }
            if !self.server.is_running()? {
                bail!("the server ended by itself");
            }
            Ok(None)
        })
    }

    /// Stops every VM and then the server. Disks and database stay.
    fn shut_down(mut self) -> Result<()> {
        ui::heading("Stopping");
        let stopped = self.stop_vms();
        if stopped.is_err() {
            ui::say("  not every VM stopped in time; those go on running and are found by the next start");
            self.server.leave_vms();
        }
        self.server.stop()?;
        ui::say(format!("  stopped; the data is in {}", self.server.data_dir().display()));
        stopped
    }

    fn stop_vms(&self) -> Result<()> {
        let page = self.client.get("/api/v1/cvms/paginated?page=1&page_size=100")?.ok()?;
        let mut asked = Vec::new();
        for cvm in page["items"].as_array().into_iter().flatten() {
            let (Some(id), Some("running")) = (cvm["vm_uuid"].as_str(), cvm["status"].as_str()) else { continue };
            self.client.post(&format!("/api/v1/cvms/{id}/stop"), None)?.ok()?;
            asked.push((id.to_owned(), cvm["name"].as_str().unwrap_or(id).to_owned()));
        }
        for (id, name) in asked {
            holdfast_harness::operation::settle(&self.client, &id, STOP_LIMIT)?;
            ui::say(format!("  {name} is stopped"));
        }
        Ok(())
    }

    /// Deletes the VM, stops the server and removes its folder.
    fn remove(mut self) -> Result<()> {
        ui::heading("Cleaning up");
        let deleted = self.delete_app();
        self.server.stop()?;
        let folder = self.server.data_dir().to_owned();
        drop(self);
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        ui::say("  nothing is left");
        deleted
    }

    fn delete_app(&self) -> Result<()> {
        let found = self.client.get(&format!("/api/v1/cvms/{APP}"))?;
        if found.status == 404 {
            return Ok(());
        }
        let id = found.ok()?["vm_uuid"].as_str().context("a CVM without vm_uuid")?.to_owned();
        let answer = self.client.delete(&format!("/api/v1/cvms/{id}"))?;
        if answer.status == 409 {
            // Still busy with what failed or was interrupted; the folder goes anyway.
            return Ok(());
        }
        answer.ok()?;
        until(STOP_LIMIT, "the VM is deleted", || {
            Ok((self.client.get(&format!("/api/v1/cvms/{id}"))?.status == 404).then_some(()))
        })
    }
}
