//! A server with a data folder of its own, with the node inside it or beside it.
//!
//! The one rule: dropping a cloud ends every process it started and every VM of its folder.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use holdfast_harness::client::Client;
use holdfast_harness::operation;
use holdfast_harness::server::{Node, Options, Server, tail};
use holdfast_harness::until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::leftovers;

/// Long enough for an emulated guest on a busy machine. These are limits of patience, several times what a machine of two
/// slow cores needs: they say that something hangs, and never how fast it is.
pub const BOOT: Duration = Duration::from_secs(480);
/// For everything that needs no guest.
pub const SOON: Duration = Duration::from_secs(120);
/// After a crash: a node that does not know whether the guest heard its wish to stop gives it the whole grace time.
pub const AFTER_CRASH: Duration = Duration::from_secs(240);

/// A compose file that publishes one port.
pub const COMPOSE: &str = "services:\n  app:\n    image: hello\n    ports:\n      - \"8080:8080\"\n";

/// Ports that a node's VMs are published on. Each node of a test process has its own, so that tests can run side by side.
const PORTS: std::ops::Range<u16> = 21_000..29_000;
const PORTS_OF_A_NODE: u16 = 40;

/// The variable that gives a node ports which no other node of this process has.
fn own_ports() -> (String, String) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let places = (PORTS.end - PORTS.start) / PORTS_OF_A_NODE;
    let first = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % places * PORTS_OF_A_NODE;
    ("HOLDFAST_PORT_FIRST".to_owned(), first.to_string())
}

pub struct Cloud {
    // Dropped first to last: processes before their folder.
    pub node: Option<Node>,
    pub server: Server,
    pub client: Client,
    pub folder: TempDir,
    /// Of the node beside the server.
    pub token: Option<String>,
}

impl Cloud {
    /// Simulated VMs whose steps take `step_ms`, node and server in one process.
    pub fn simulated(step_ms: u64) -> Self {
        Self::embedded(&["--hypervisor", "simulated", "--simulated-step-ms", &step_ms.to_string()])
    }

    /// Simulated VMs, with one key of the configuration, by the name of its variable.
    pub fn simulated_with(variable: &str, value: &str) -> Self {
        let set = (variable.to_owned(), value.to_owned());
        Self::embedded_with(&["--hypervisor", "simulated", "--simulated-step-ms", "1"], vec![set])
    }

    /// Simulated VMs, with these keys of the configuration, by the names of their variables.
    pub fn simulated_under(variables: Vec<(String, String)>) -> Self {
        Self::embedded_with(&["--hypervisor", "simulated", "--simulated-step-ms", "1"], variables)
    }

    /// Simulated VMs, and webhooks that may go to this host.
    pub fn simulated_for_webhooks(step_ms: u64) -> Self {
        let env = [("HOLDFAST_WEBHOOK_NETWORKS", "127.0.0.0/8"), ("HOLDFAST_WEBHOOK_HTTP", "true")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self::embedded_with(&["--hypervisor", "simulated", "--simulated-step-ms", &step_ms.to_string()], env)
    }

    /// Real VMs, node and server in one process.
    pub fn real() -> Self {
        Self::embedded(&[])
    }

    fn embedded(args: &[&str]) -> Self {
        Self::embedded_with(args, Vec::new())
    }

    fn embedded_with(args: &[&str], env: Vec<(String, String)>) -> Self {
        let folder = short_folder();
        let mut options = Options::new(crate::binary(), folder.path().join("d"));
        options.args = args.iter().map(|a| (*a).to_owned()).collect();
        options.env = env;
        options.env.push(own_ports());
        let server = Server::start(options).expect("the server starts");
        let client = server.client().expect("the first start wrote admin.key");
        Self { node: None, server, client, folder, token: None }
    }

    /// Server and node in processes of their own.
    pub fn apart(hypervisor: &[&str]) -> Self {
        let folder = short_folder();
        let options = Options::new(crate::binary(), folder.path().join("d"));
        Self::apart_with(folder, options, hypervisor, vec![own_ports()])
    }

    /// The server as it is told, the node with these options and variables.
    pub fn apart_with(folder: TempDir, options: Options, hypervisor: &[&str], env: Vec<(String, String)>) -> Self {
        let node = folder.path().join("n");
        Self::apart_at(folder, options, hypervisor, env, node)
    }

    /// The same, with the node's folder.
    pub fn apart_at(
        folder: TempDir,
        options: Options,
        hypervisor: &[&str],
        env: Vec<(String, String)>,
        folder_of_node: PathBuf,
    ) -> Self {
        let mut server = Server::launch(options.args(["--node", "none"])).expect("the server starts");
        server.wait_ready().expect("a server without a node of its own is ready at once");
        let client = server.client().expect("the first start wrote admin.key");
        let token = node_token(&server, &client);
        let node = Node::start_with(&crate::binary(), &server.url(), &token, &folder_of_node, hypervisor, env);
        let node = node.expect("the node starts");
        let cloud = Self { node: Some(node), server, client, folder, token: Some(token) };
        cloud.wait_node();
        cloud
    }

    /// Until a node is ONLINE and has said that it takes VMs.
    pub fn wait_node(&self) {
        let ready = until(SOON, "a node is ready", || {
            let nodes = self.client.get("/holdfast/v1/nodes")?.ok()?;
            let is_ready = |n: &Value| n["status"] == "ONLINE" && n["ready"] == true;
            Ok(nodes["items"].as_array().is_some_and(|list| list.iter().any(is_ready)).then_some(()))
        });
        ready.unwrap_or_else(|error| panic!("{error}\n{}", self.server.log_end(40)));
    }

    pub fn node(&mut self) -> &mut Node {
        self.node.as_mut().expect("a cloud with a node apart")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.server.data_dir().to_owned()
    }

    /// Where the node keeps its records.
    pub fn node_dir(&self) -> PathBuf {
        self.node.as_ref().map_or_else(|| self.data_dir(), |node| node.data_dir.clone()).join("node")
    }

    /// Deploys, and answers (uuid, id of the create operation). Does not wait.
    pub fn deploy(&self, name: &str) -> (String, String) {
        let cvm = self.client.deploy(name, COMPOSE, &json!({})).expect("the deployment is accepted");
        let operation = operation::newest(&self.client, &cvm).expect("a new CVM has its create operation");
        assert_eq!(operation["operation_type"], "create", "{operation}");
        (cvm, text(&operation["id"]))
    }

    /// Deploys and waits until the app runs.
    pub fn deployed(&self, name: &str, limit: Duration) -> String {
        let (cvm, id) = self.deploy(name);
        self.done(&id, limit);
        cvm
    }

    /// `start`, `stop`, `restart`, `shutdown`; answers the operation's id.
    pub fn power(&self, cvm: &str, verb: &str) -> String {
        let answer = self.client.post(&format!("/api/v1/cvms/{cvm}/{verb}"), None).expect("the server answers");
        answer.ok().unwrap_or_else(|e| panic!("{verb}: {e}"));
        text(&operation::newest(&self.client, cvm).expect("it has an operation")["id"])
    }

    /// Answers the delete operation's id.
    pub fn delete(&self, cvm: &str) -> String {
        let answer = self.client.delete(&format!("/api/v1/cvms/{cvm}")).expect("the server answers");
        assert_eq!(answer.status, 204, "{}", answer.text);
        text(&operation::newest(&self.client, cvm).expect("the deleted CVM's operations stay readable")["id"])
    }

    /// Deletes, and waits until nothing is left of it.
    pub fn deleted(&self, cvm: &str) {
        let id = self.delete(cvm);
        self.done(&id, AFTER_CRASH);
    }

    /// Waits until the operation is over, and fails unless it is done.
    pub fn done(&self, id: &str, limit: Duration) -> Value {
        let over = self.over(id, limit);
        assert_eq!(over["status"], "done", "{over:#}\n{}\n{}", self.server.log_end(30), self.consoles());
        over
    }

    /// What the VMs that are there said last.
    fn consoles(&self) -> String {
        let mut said = String::new();
        for folder in [self.server.data_dir(), self.folder.path()] {
            for log in leftovers::files_named(folder, "serial.log") {
                let _ = writeln!(said, "--- the end of {}\n{}", log.display(), tail(&log, 60));
            }
        }
        said
    }

    /// Waits until the operation is over, however.
    pub fn over(&self, id: &str, limit: Duration) -> Value {
        let over = until(limit, &format!("operation {id} is over"), || {
            // While the server is restarted nobody answers.
            let operation = operation::by_id(&self.client, id).unwrap_or(Value::Null);
            Ok(operation::is_over(&operation).then_some(operation))
        });
        over.unwrap_or_else(|error| {
            let now = operation::by_id(&self.client, id).unwrap_or(Value::Null);
            panic!("{error}\n{now:#}\n{}\n{}", self.server.log_end(40), self.consoles())
        })
    }

    /// Waits until the operation has come to the step or past it; answers whether it was seen at work in that step.
    pub fn reached(&self, id: &str, step: &str) -> bool {
        let seen = until(BOOT, &format!("operation {id} reaches {step}"), || {
            let operation = operation::by_id(&self.client, id)?;
            let state = step_state(&operation, step);
            Ok((state != "pending" || operation::is_over(&operation)).then(|| state == "running"))
        });
        seen.unwrap_or_else(|error| panic!("{error}\n{}", self.server.log_end(40)))
    }

    pub fn status(&self, cvm: &str) -> String {
        let detail = self.client.get(&format!("/api/v1/cvms/{cvm}")).expect("the server answers");
        if detail.status == 404 { "deleted".to_owned() } else { text(&detail.json()["status"]) }
    }

    pub fn wait_status(&self, cvm: &str, status: &str, limit: Duration) {
        let reached = until(limit, &format!("{cvm} is {status}"), || Ok((self.status(cvm) == status).then_some(())));
        reached.unwrap_or_else(|error| panic!("{error}; it is {}\n{}", self.status(cvm), self.server.log_end(40)));
    }
}

/// The state of a step by name; `pending` when the operation has no such step yet.
pub fn step_state(operation: &Value, step: &str) -> String {
    let steps = operation["steps"].as_array().into_iter().flatten();
    let found = steps.into_iter().find(|s| s["name"] == step).and_then(|s| s["state"].as_str());
    found.unwrap_or("pending").to_owned()
}

/// A JSON string; fails on anything else.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).to_owned()
}

fn node_token(server: &Server, client: &Client) -> String {
    let output = Command::new(crate::binary())
        .args(["admin", "node-token", "--data-dir"])
        .arg(server.data_dir())
        .env("HOLDFAST_URL", server.url())
        .env("HOLDFAST_API_KEY", &client.key)
        .output()
        .expect("holdfast runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The paths of unix sockets below it must stay below 108 bytes.
pub fn short_folder() -> TempDir {
    tempfile::Builder::new().prefix("hf").tempdir_in(Path::new("/tmp")).expect("/tmp is writable")
}
