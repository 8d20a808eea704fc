//! One server that is crashed case after case: the restart that ends one case is the start of the next.
//!
//! The one rule: a case ends with every check and with nothing left of its CVM, so that the next one begins on a server
//! that is as good as new. After a failed case the chain is thrown away and its folder kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use holdfast_e2e::cloud::{BOOT, Cloud, SOON};
use holdfast_e2e::{leftovers, truth};
use holdfast_harness::server::{Options, Server};
use holdfast_harness::{operation, process, until};
use serde_json::Value;

use crate::plans::{Answered, Plan, Target, Victim};

/// Long enough for everything that follows an operation at once, such as the node's last report.
const AFTERMATH: Duration = Duration::from_millis(200);
/// Servers of one run listen next to each other, on ports that the kernel gives to nobody while a server is down.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// One crash: at the n-th time that a plan comes by a point.
#[derive(Debug, Clone)]
pub struct Case {
    pub plan: Plan,
    pub point: String,
    pub hit: u32,
}

pub struct Chain {
    cloud: Cloud,
    /// Where the server finds what to do at its points.
    points: PathBuf,
    cases: u32,
}

impl Chain {
    pub fn new(binary: &Path, plan: Plan) -> Self {
        let folder = tempfile::Builder::new().prefix("hfc").tempdir_in("/tmp").expect("/tmp is writable");
        let [points, idle] = ["points", "idle"].map(|name| folder.path().join(name));
        for folder in [&points, &idle] {
            fs::create_dir(folder).expect("a folder");
        }
        let index = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let own = u16::try_from(std::process::id() % 100).unwrap_or(0) * 40 + index % 40;
        let ports = (23_000 + own).to_string();
        let env = |points: &Path| {
            [("FAILPOINTS", points.to_str().unwrap_or_default()), ("PORT_FIRST", &ports), ("LOG", "info")]
                .map(|(name, value)| (format!("HOLDFAST_{name}"), value.to_owned()))
        };
        let mut options = Options::new(binary, folder.path().join("d"));
        if plan.deletes_half_booted() {
            // Past the pivot: the machine stays when its guest is too late.
            options.env.push(("HOLDFAST_DEADLINE_BOOT_S".to_owned(), "1".to_owned()));
        }
        let simulated = ["--hypervisor", "simulated", "--simulated-step-ms", plan.step_ms()];
        options.port = Some(11_000 + own);
        if plan.victim.is_apart() {
            // Points of one of them only.
            let (server, node) = if plan.victim == Victim::Server { (&points, &idle) } else { (&idle, &points) };
            options.env.extend(env(server));
            let cloud = Cloud::apart_with(folder, options, &simulated, env(node).to_vec());
            return Self { cloud, points, cases: 0 };
        }
        if !plan.qemu {
            options = options.args(simulated);
        }
        options.env.extend(env(&points));
        let server = Server::start(options).expect("the server starts");
        let client = server.client().expect("the first start wrote admin.key");
        Self { cloud: Cloud { node: None, server, client, folder, token: None }, points, cases: 0 }
    }

    /// Keeps the folder, and says where it is.
    pub fn keep(self) -> PathBuf {
        let Cloud { server, node, folder, .. } = self.cloud;
        drop((server, node));
        folder.keep()
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.points.join(format!("{file}.new")), text).expect("written");
        fs::rename(self.points.join(format!("{file}.new")), self.points.join(file)).expect("renamed");
    }

    fn remove(&self, file: &str) {
        let _ = fs::remove_file(self.points.join(file));
    }

    fn set_up(&mut self, plan: Plan) -> (Target, i64) {
        self.cases += 1;
        let target = plan.set_up(&self.cloud, &format!("{}-{}", plan.name.replace('_', "-"), self.cases));
        let cvm = target.cvm.clone().unwrap_or_default();
        if let Some(cvm) = target.cvm.as_ref().or(target.model.as_ref()).filter(|_| !plan.deletes_half_booted()) {
            self.check_node(cvm, 0);
        }
        let epoch = truth::epoch(&self.cloud, &cvm);
        if let Some(fails) = plan.fails {
            self.write("fail", fails);
        }
        (target, epoch)
    }

    /// Runs the plan undisturbed; answers the points that it came by, in order.
    pub fn record(&mut self, plan: Plan) -> Vec<String> {
        let (target, epoch) = self.set_up(plan);
        self.write("armed", "record");
        let answered = plan.run(&self.cloud, &target);
        let died = self.watch(plan, &target);
        assert!(!died, "the server ended while nothing was to end it");
        self.remove("armed");
        self.check(plan, target, epoch, &answered);
        let points = fs::read_to_string(self.points.join("points")).expect("points were recorded");
        self.remove("points");
        points.lines().map(str::to_owned).collect()
    }

    /// Crashes the victim at the case's point, starts it again and checks. False: the plan never came by that point so
    /// often, and was checked undisturbed.
    pub fn crash(&mut self, case: &Case) -> bool {
        let (target, epoch) = self.set_up(case.plan);
        let machines = case.plan.victim == Victim::Machine;
        let act = if machines { "machines" } else { "crash" };
        self.write("armed", &format!("{act}\n{}\n{}", case.point, case.hit));
        let answered = case.plan.run(&self.cloud, &target);
        let died = self.watch(case.plan, &target);
        self.remove("armed");
        if died {
            self.start_again(case.plan.victim);
        }
        let struck = died || self.points.join("struck").exists();
        self.remove("struck");
        self.check(case.plan, target, epoch, &answered);
        struck
    }

    fn start_again(&mut self, victim: Victim) {
        let cloud = &mut self.cloud;
        if victim == Victim::Node {
            let _ = cloud.node().kill();
            return cloud.node().restart().expect("the node starts again");
        }
        let _ = cloud.server.kill();
        if victim == Victim::Host {
            process::kill_vms(cloud.folder.path());
            let gone = until(SOON, "every machine is gone", || {
                Ok(process::vms_of(cloud.folder.path()).is_empty().then_some(()))
            });
            gone.expect("killed");
            let boot_id = cloud.folder.path().join("boot_id");
            let boots = self.cases;
            fs::write(&boot_id, format!("5f9c3e0a-7d51-4a5e-9d59-{boots:012x}\n")).expect("written");
            cloud.server.set_boot_id(boot_id);
        }
        cloud.server.restart().expect("the server starts again");
        cloud.client = cloud.server.client().expect("the key is still there");
    }

    /// The CVM that the plan is about, if there is one by now.
    fn cvm(&self, target: &Target) -> Option<String> {
        let made = || {
            let mut named = truth::vms_named(&self.cloud, &target.name);
            named.retain(|cvm| Some(cvm) != target.model.as_ref());
            assert!(named.len() <= 1, "one request made {} VMs", named.len());
            named.pop()
        };
        target.cvm.clone().or_else(made)
    }

    /// Until the victim has died or the plan is over and done with; true when it died.
    fn watch(&mut self, plan: Plan, target: &Target) -> bool {
        let limit = if plan.qemu { BOOT } else { SOON };
        let mut over: Option<Instant> = None;
        let ended = until(limit, "the victim dies or the plan is over", || {
            let lives = match plan.victim {
                Victim::Node => self.cloud.node().is_running()?,
                _ => self.cloud.server.is_running()?,
            };
            if !lives {
                return Ok(Some(true));
            }
            let is_over = self
                .cvm(target)
                .and_then(|cvm| operation::newest(&self.cloud.client, &cvm).ok())
                .is_some_and(|o| o["operation_type"] == plan.operation_type && operation::is_over(&o));
            if is_over && over.get_or_insert_with(Instant::now).elapsed() > AFTERMATH {
                return Ok(Some(false));
            }
            Ok(None)
        });
        ended.unwrap_or_else(|e| panic!("{e}\n{}", self.cloud.server.log_end(20)))
    }

    /// Everything that must be true now.
    fn check(&mut self, plan: Plan, target: Target, epoch: i64, answered: &Answered) {
        let cloud = &self.cloud;
        let cvm = self.cvm(&target);
        let died = plan.victim.ends_machines();
        let success = |status: u16| (200..300).contains(&status);
        let accepted = answered.request.is_some_and(success);
        let too_late = answered.cancel == Some(409);
        assert!(answered.request.is_none() || accepted, "{answered:?}");
        assert!(answered.cancel.is_none_or(success) || too_late, "{answered:?}");
        let ids = cvm.as_deref().map(|c| truth::operations_of(cloud, c, plan.operation_type)).unwrap_or_default();
        // Setting up a power_on makes none of its own type, so that there is one for each request at the most.
        assert!(ids.len() <= plan.times, "{} requests made {} operations", plan.times, ids.len());
        assert!(!accepted || ids.len() == plan.times, "what was answered {answered:?} is not there");
        let overs: Vec<Value> = ids.iter().map(|id| cloud.over(id, if plan.qemu { BOOT } else { SOON })).collect();
        let over = overs.last();
        self.remove("fail");
        let (end, status) = match over {
            // The server died before it took the cancel, or the pivot was passed; then the create goes on.
            Some(over) if plan.cancelled && !answered.cancel.is_some_and(success) && over["status"] == "done" => {
                ("done", "running")
            }
            _ => plan.ends,
        };
        for over in &overs {
            assert_eq!(over["status"], end, "{over:#}\n{}", cloud.server.log_end(20));
            truth::assert_story(cloud, over);
        }
        if let Some(cvm) = &cvm {
            let status = if over.is_some() { status } else { before(plan) };
            if died && status != "deleted" {
                // It comes up again by itself.
                cloud.wait_status(cvm, status, SOON);
            }
            assert_eq!(cloud.status(cvm), status, "the CVM after {:?}", over.map(|o| &o["status"]));
            if ["running", "stopped"].contains(&status) {
                self.check_node(cvm, u64::from(died));
                let raised = truth::epoch(cloud, cvm) - epoch;
                let least = plan.epochs * i64::try_from(overs.len()).expect("few");
                // An update of a VM that is not well, or its undo, takes a new start.
                let most = least + if died && plan.name.starts_with("compose_update") { 2 } else { 0 };
                assert!((least..=most).contains(&raised), "boot epochs raised: {raised}, not {least} to {most}");
            }
            if plan.qemu {
                let machines = process::vms_of(cloud.folder.path()).len();
                assert_eq!(machines, usize::from(status != "deleted"), "QEMU processes");
            }
        }
        truth::assert_consistent(cloud);
        if let Some(model) = &target.model {
            cloud.wait_status(model, "running", SOON);
            self.check_node(model, u64::from(died));
        }
        let both: Vec<&String> = cvm.iter().chain(&target.model).collect();
        for cvm in &both {
            if cloud.status(cvm) != "deleted" {
                cloud.deleted(cvm);
            }
        }
        for cvm in both {
            leftovers::assert_none(cloud, cvm);
        }
        truth::assert_consistent(cloud);
        // A chain that broke stays broken: it need not be followed from its beginning after each case.
        if self.cases % 12 == 1 {
            truth::assert_chain(cloud);
        }
    }

    fn check_node(&self, cvm: &str, restarts: u64) {
        let why = || truth::disagreement(&self.cloud, cvm, restarts);
        let agreed = until(SOON, "server and node agree", || Ok(why().is_none().then_some(())));
        agreed.unwrap_or_else(|e| panic!("{e}: {}", why().unwrap_or_default()));
    }
}

/// Status of the CVM before the plan.
fn before(plan: Plan) -> &'static str {
    match plan.operation_type {
        "power_on" => "stopped",
        _ if plan.deletes_half_booted() => "error",
        _ => "running",
    }
}
