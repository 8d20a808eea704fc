//! The plans that are crashed: what each needs before it, what is asked, and how it must end whatever happens.
//!
//! The one rule: every plan of the engine is here, and those that can be undone a second time as undone. Plans that differ
//! in nothing but their names are here once. Those of [`STRUCK`] are here once more for each [`Victim`].

use holdfast_e2e::cloud::{COMPOSE, Cloud, SOON, step_state};
use holdfast_e2e::truth;
use holdfast_harness::client::Answer;
use holdfast_harness::{operation, until};
use serde_json::{Value, json};

/// Who dies at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The server, with its node in the same process.
    Both,
    /// The server; its node, a process of its own, goes on.
    Server,
    /// The node; its server goes on.
    Node,
    /// The machine that runs the VM.
    Machine,
    /// The whole host, by its power: server, node and machines, and what comes up has another boot id.
    Host,
}

impl Victim {
    /// Appended to the plan's name for `--plan`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Both => "",
            Self::Server => "@server",
            Self::Node => "@node",
            Self::Machine => "@machine",
            Self::Host => "@host",
        }
    }

    /// Server and node are processes of their own.
    pub fn is_apart(self) -> bool {
        matches!(self, Self::Server | Self::Node)
    }

    /// The VM ends without anybody having asked for it.
    pub fn ends_machines(self) -> bool {
        matches!(self, Self::Machine | Self::Host)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// For `--plan`.
    pub name: &'static str,
    pub victim: Victim,
    pub operation_type: &'static str,
    /// A point of the node whose act fails, so that the plan is undone.
    pub fails: Option<&'static str>,
    /// Status of the operation when it is over, and of the CVM then.
    pub ends: (&'static str, &'static str),
    /// How often it raises the boot epoch.
    pub epochs: i64,
    /// How often it is asked for, without waiting: the operations after the first one wait in line.
    pub times: usize,
    pub qemu: bool,
    /// A cancel follows as soon as the node is at work, before the pivot.
    pub cancelled: bool,
}

/// What the client was answered: status codes, none where there was no answer.
#[derive(Debug, Default)]
pub struct Answered {
    pub request: Option<u16>,
    pub cancel: Option<u16>,
}

const fn plan(name: &'static str, operation_type: &'static str, cvm: &'static str, epochs: i64) -> Plan {
    Plan {
        name,
        victim: Victim::Both,
        operation_type,
        fails: None,
        ends: ("done", cvm),
        epochs,
        times: 1,
        qemu: false,
        cancelled: false,
    }
}

const fn undone(plan: Plan, name: &'static str, fails: &'static str, cvm: &'static str) -> Plan {
    Plan { name, fails: Some(fails), ends: ("failed", cvm), ..plan }
}

const CREATE: Plan = plan("create", "create", "running", 1);
const POWER_ON: Plan = plan("power_on", "power_on", "running", 1);
const RESTART: Plan = plan("restart", "restart", "running", 1);
const DELETE: Plan = plan("delete", "delete", "deleted", 0);

const COMPOSE_UPDATE: Plan = plan("compose_update", "compose_update", "running", 0);
const COMPOSE_UPDATE_UNDONE: Plan =
    Plan { name: "compose_update_undone", ends: ("failed", "running"), ..COMPOSE_UPDATE };
const RESIZE: Plan = plan("resize", "resize", "running", 1);
const POWER_OFF: Plan = plan("power_off", "power_off", "stopped", 0);
const SHUTDOWN: Plan = plan("shutdown", "shutdown", "stopped", 0);
const REPLICATE: Plan = plan("replicate", "replicate", "running", 1);
/// Another app.
const CHANGED: &str = "services:\n  app:\n    image: other\n    ports: [\"8080:8080\"]\n";
/// The simulated guest fails this one.
const BROKEN: &str = "services:\n  holdfast-sim-fail:\n    image: x\n    ports: [\"8080:8080\"]\n";

const ALONE: [Plan; 18] = [
    CREATE,
    undone(CREATE, "create_undone_at_prepare", "prepare", "deleted"),
    undone(CREATE, "create_undone_at_start", "start", "deleted"),
    Plan { name: "create_cancelled", cancelled: true, ends: ("cancelled", "deleted"), ..CREATE },
    REPLICATE,
    POWER_ON,
    undone(POWER_ON, "power_on_undone", "start", "stopped"),
    POWER_OFF,
    SHUTDOWN,
    RESTART,
    Plan { name: "restart_queued", times: 2, ..RESTART },
    COMPOSE_UPDATE,
    COMPOSE_UPDATE_UNDONE,
    RESIZE,
    plan("rename", "rename", "running", 0),
    DELETE,
    Plan { name: "qemu_create", qemu: true, ..CREATE },
    Plan { name: "qemu_delete", qemu: true, ..DELETE },
];

/// In these every process dies on its own, and the power is cut.
const STRUCK: [Plan; 4] = [COMPOSE_UPDATE, RESIZE, POWER_OFF, REPLICATE];

/// Every plan with every victim. Only root can give a server another boot id.
pub fn all() -> Vec<Plan> {
    let root = rustix::process::geteuid().is_root();
    let victims = [Victim::Server, Victim::Node, Victim::Machine, Victim::Host];
    let victims = victims.into_iter().filter(|victim| root || *victim != Victim::Host);
    let struck = victims.flat_map(|victim| STRUCK.map(|plan| Plan { victim, ..plan }));
    ALONE.into_iter().chain(struck).collect()
}

/// What a plan is run on.
pub struct Target {
    pub name: String,
    /// Known before the request, except for a create.
    pub cvm: Option<String>,
    /// The CVM that another one is made like.
    pub model: Option<String>,
    provisioned: Value,
}

impl Plan {
    /// What is deployed. Real guests run a script: where they are crashed, containers make no difference but take long.
    fn app(&self) -> Value {
        if !self.qemu {
            return json!({});
        }
        let script = json!({ "name": "", "runner": "bash", "bash_script": "sleep infinity", "public_logs": true });
        json!({ "compose_file": script })
    }

    /// For `--plan`.
    pub fn title(&self) -> String {
        format!("{}{}", self.name, self.victim.suffix())
    }

    /// Plans that can be run on the same server, one after the other, say the same word here.
    pub fn server(&self) -> &'static str {
        if self.qemu || self.cancelled { self.name } else { self.victim.suffix() }
    }

    /// How long each step of a simulated VM takes.
    pub fn step_ms(&self) -> &'static str {
        if self.cancelled { "80" } else { "4" }
    }

    /// A real guest that is only there to be deleted need not have come up.
    pub fn deletes_half_booted(&self) -> bool {
        self.qemu && self.operation_type == "delete"
    }

    /// Brings the cloud to where the plan can begin.
    pub fn set_up(&self, cloud: &Cloud, name: &str) -> Target {
        let mut target = Target { name: name.to_owned(), cvm: None, model: None, provisioned: Value::Null };
        if self.operation_type == "create" {
            let answer = cloud.client.provision(name, COMPOSE, &self.app()).and_then(Answer::ok);
            target.provisioned = answer.expect("provisioned");
            return target;
        }
        let cvm = cloud.client.deploy(name, COMPOSE, &self.app()).expect("deployed");
        let create = operation::newest(&cloud.client, &cvm).expect("an operation");
        let over = cloud.over(create["id"].as_str().expect("an id"), SOON);
        assert_eq!(over["status"], if self.deletes_half_booted() { "failed" } else { "done" }, "{over:#}");
        if self.operation_type == "power_on" {
            let stop = cloud.power(&cvm, "stop");
            cloud.done(&stop, SOON);
        }
        if self.operation_type == "replicate" {
            target.model = Some(cvm);
        } else {
            target.cvm = Some(cvm);
        }
        target
    }

    /// What a user does: the one request that starts the plan, and the cancel if there is one.
    pub fn run(&self, cloud: &Cloud, target: &Target) -> Answered {
        let mut request = None;
        for _ in 0..self.times {
            request = self.request(cloud, target);
        }
        let mut answered = Answered { request: request.as_ref().map(|a| a.status), cancel: None };
        if self.cancelled
            && let Some(cvm) = request.as_ref().and_then(|a| a.json()["vm_uuid"].as_str().map(str::to_owned))
            && let Some(id) = truth::operations_of(cloud, &cvm, self.operation_type).first()
        {
            // At work on the node, long before the pivot; or the server has died.
            let at_work = until(SOON, "the node prepares", || {
                let operation = operation::by_id(&cloud.client, id)?;
                Ok((step_state(&operation, "prepare") != "pending").then_some(()))
            });
            if at_work.is_err() {
                return answered;
            }
            let cancel = cloud.client.post(&format!("/holdfast/v1/operations/{id}/cancel"), None);
            answered.cancel = cancel.ok().map(|a| a.status);
        }
        answered
    }

    fn request(&self, cloud: &Cloud, target: &Target) -> Option<Answer> {
        let cvm = target.cvm.as_deref().unwrap_or_default();
        let path = format!("/api/v1/cvms/{cvm}");
        let answer = match self.operation_type {
            "create" => cloud.client.commit(&target.provisioned, None),
            // Where operations wait for their turn.
            _ if self.times > 1 => cloud.client.post(&format!("/v1/compute/vms/{cvm}/{}", self.operation_type), None),
            "power_on" => cloud.client.post(&format!("{path}/start"), None),
            "power_off" => cloud.client.post(&format!("{path}/stop"), None),
            "shutdown" => cloud.client.post(&format!("{path}/shutdown"), None),
            "replicate" => {
                let model = target.model.as_deref().unwrap_or_default();
                cloud.client.post(&format!("/api/v1/cvms/{model}/replicas"), None)
            }
            "restart" => cloud.client.post(&format!("{path}/restart"), None),
            "compose_update" => {
                let compose = if self.ends.0 == "done" { CHANGED } else { BROKEN };
                cloud.client.send(
                    "PATCH",
                    &path,
                    &[],
                    Some(json!({ "docker_compose_file": compose }).to_string().into()),
                )
            }
            "resize" => {
                let body = json!({ "vcpu": 2, "memory": 1024 }).to_string();
                cloud.client.send("PATCH", &format!("{path}/resources"), &[], Some(body.into()))
            }
            "rename" => {
                let body = json!({ "name": format!("{}-new", target.name) }).to_string();
                cloud.client.send("PATCH", &format!("{path}/name"), &[], Some(body.into()))
            }
            _ => cloud.client.delete(&path),
        };
        answer.ok()
    }
}
