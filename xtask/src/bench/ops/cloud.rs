//! A server to load: the release binary on a folder of its own, with simulated VMs or without a node.
//!
//! The one rule: what a figure needs beforehand (provisions, CVMs) is made here, outside of its clock.

use std::collections::VecDeque;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_harness::client::{Client, provision_body};
use holdfast_harness::server::{Options, Server};
use holdfast_harness::{process, until};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::feed::Ends;
use super::http::{Connection, Target};

const COMPOSE: &str = "services:\n  app:\n    image: hello\n";
/// Requests in flight while something is prepared.
const PREPARERS: usize = 16;

pub struct Cloud {
    pub server: Server,
    pub target: Target,
}

impl Cloud {
    /// With a node of simulated VMs whose steps take no time.
    pub fn start(binary: &Path, folder: &Path) -> Result<Self> {
        let options = Options::new(binary, folder).args(["--hypervisor", "simulated", "--simulated-step-ms", "0"]);
        Self::of(Server::start(options)?)
    }

    /// With real VMs.
    pub fn real(binary: &Path, folder: &Path) -> Result<Self> {
        Self::of(Server::start(Options::new(binary, folder))?)
    }

    /// Without a node: it only answers questions, and seals what is not sealed. It refuses as often as it is asked to.
    pub fn without_node(binary: &Path, folder: &Path) -> Result<Self> {
        let mut options = Options::new(binary, folder).args(["--node", "none"]);
        options.env.push(("HOLDFAST_RATE_LIMIT_FAILURES".to_owned(), "none".to_owned()));
        let server = Server::launch(options)?;
        let client = Client::new(server.url(), "");
        until(Duration::from_secs(60), "the server answers", || {
            Ok(client.get("/healthz").ok().filter(|answer| answer.status == 200))
        })
        .with_context(|| format!("the end of its log:\n{}", server.log_end(20)))?;
        Self::of(server)
    }

    /// One that was started elsewhere.
    pub fn of(server: Server) -> Result<Self> {
        let key = fs::read_to_string(server.key_path())?.trim().to_owned();
        let address = server.url().trim_start_matches("http://").to_owned();
        Ok(Self { server, target: Target { address, key } })
    }

    /// Seconds of processor time that the server has used.
    pub fn cpu(&self) -> Result<f64> {
        let id = self.server.id().context("the server runs")?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        // The name, in parentheses, may hold anything; counting starts after it.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    /// Commits that the server's database has made.
    pub async fn commits(&self) -> Result<f64> {
        let metrics = Connection::open(&self.target).await?.get("/metrics").await?;
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        let line = metrics.lines().find_map(|line| line.strip_prefix("holdfast_database_commits_total "));
        line.context("the metrics have no commits")?.trim().parse().context("a count of commits")
    }

    /// Resident memory of the server in bytes.
    pub fn resident(&self) -> Result<u64> {
        let id = self.server.id().context("the server runs")?;
        Ok(process::resident(id).context("the server is gone")?.0)
    }

    /// Provisions that many CVMs; answers the bodies that commit them.
    pub async fn provision(&self, name: &str, count: usize) -> Result<VecDeque<Value>> {
        let bodies = (0..count).map(|n| provision_body(&format!("{name}-{n}"), COMPOSE, &json!({})));
        let provisioned = self.each(PREPARERS, bodies.collect(), |mut connection, body| async move {
            let answer = connection.post("/api/v1/cvms/provision", &body).await?;
            let commit = json!({"app_id": answer["app_id"], "compose_hash": answer["compose_hash"]});
            Ok((connection, commit))
        });
        Ok(provisioned.await?.into())
    }

    /// Makes that many CVMs and waits until all run; answers their UUIDs.
    pub async fn cvms(&self, name: &str, count: usize, ends: &Ends) -> Result<Vec<String>> {
        let commits = self.provision(name, count).await?;
        let ends = ends.clone();
        self.each(PREPARERS, commits, move |mut connection, commit| {
            let ends = ends.clone();
            async move {
                let uuid = create(&mut connection, &commit).await?;
                ends.wait(&uuid).await?;
                Ok((connection, uuid))
            }
        })
        .await
    }

    /// Works through `items` with `lanes` connections, each of which does one thing after the other. Answers what `work`
    /// answered, in the order in which it was done.
    pub async fn each<I, O, F>(
        &self,
        lanes: usize,
        items: VecDeque<I>,
        work: impl Fn(Connection, I) -> F + Clone + Send + 'static,
    ) -> Result<Vec<O>>
    where
        I: Send + 'static,
        O: Send + 'static,
        F: Future<Output = Result<(Connection, O)>> + Send,
    {
        let items = Arc::new(Mutex::new(items));
        let mut tasks: JoinSet<Result<Vec<O>>> = JoinSet::new();
        for _ in 0..lanes {
            let mut connection = Connection::open(&self.target).await?;
            let (items, work) = (items.clone(), work.clone());
            tasks.spawn(async move {
                let mut done = Vec::new();
                loop {
                    let item = items.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(item) = item else { return Ok(done) };
                    let (back, output) = work(connection, item).await?;
                    connection = back;
                    done.push(output);
                }
            });
        }
        let mut all = Vec::new();
        while let Some(lane) = tasks.join_next().await {
            all.extend(lane??);
        }
        Ok(all)
    }
}

/// `POST /cvms`: the second half of a deploy, which is the create operation. Answers the CVM's UUID.
pub async fn create(connection: &mut Connection, commit: &Value) -> Result<String> {
    let answer = connection.post("/api/v1/cvms", commit).await?;
    answer["vm_uuid"].as_str().map(str::to_owned).context("the commit answer has no vm_uuid")
}
