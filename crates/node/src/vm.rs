//! One task owns one VM: it asks [`reconcile`](crate::reconcile) what to do, does it, and writes down what is there now.
//!
//! The one rule: announce, act, confirm. What is about to be done is on disk before it is done, so whoever comes after a
//! crash knows what to look for. Nobody else touches the VM's record or its machine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_failpoint as failpoint;
use holdfast_model::node::{DISK_FULL, DesiredVm, VmReport};
use holdfast_model::vm::{RestartPolicy, RunState, StopMode, VmSpec};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::clock;
use crate::hypervisor::{Adopted, Ended, Fault as StepFault, Hypervisor, Started, View};
use crate::reconcile::{self, Action, Died, Fault, Local, Machine, Tick};
use crate::record::{Layout, Life, Record, Records, Runtime};
use crate::reports::Reports;

/// How long a guest that was being stopped when the node restarted may still take.
const STOP_AFTER_ADOPTION: Duration = Duration::from_secs(30);

/// The grace of a stop is the app's; this is what the guest may take after it, to sync and power off.
const POWER_OFF_TIME: Duration = Duration::from_secs(15);

/// The same where it is only asked: an agent that heard it turns the power off 20 seconds after the grace at the latest, so
/// whoever is still there did not hear it or hangs.
const ASKED_TIME: Duration = Duration::from_secs(25);

/// What all VM tasks share.
pub(crate) struct Context {
    pub hypervisor: Arc<dyn Hypervisor>,
    pub reports: Arc<Reports>,
    pub restart_backoff: Duration,
    pub boot_id: String,
    /// When this life of the node began.
    pub began: Instant,
}

enum Save {
    Desired,
    Runtime { durable: bool },
}

pub(crate) struct Vm {
    context: Arc<Context>,
    uuid: Uuid,
    record: Record,
    local: Local,
    /// The newest desired state is not on disk yet; nothing is done before it is.
    unsaved: bool,
    view: Option<watch::Receiver<View>>,
    /// Why the machine stands still. Seen anew by each life of the node.
    paused: Option<&'static str>,
    news: watch::Receiver<Arc<DesiredVm>>,
}

impl Vm {
    /// A VM that the server just spoke of for the first time.
    pub fn new(context: Arc<Context>, news: watch::Receiver<Arc<DesiredVm>>) -> Self {
        let desired = news.borrow().clone();
        let record = Record { desired: desired.clone(), runtime: Runtime::default() };
        // A tombstone of something that is not here needs no trace of its own.
        let unsaved = desired.run_state != RunState::Absent;
        let local = Local { desired: Some(desired), ..Local::default() };
        Self { context, uuid: record.desired.uuid, record, local, unsaved, view: None, paused: None, news }
    }

    /// A VM that was found on disk.
    pub fn found(context: Arc<Context>, record: Record, news: watch::Receiver<Arc<DesiredVm>>) -> Self {
        let runtime = &record.runtime;
        let local = Local {
            desired: Some(record.desired.clone()),
            epoch: runtime.epoch,
            restarts: runtime.restarts,
            ..Local::default()
        };
        Self { context, uuid: record.desired.uuid, record, local, unsaved: false, view: None, paused: None, news }
    }

    fn now(&self) -> Tick {
        self.context.began.elapsed()
    }

    fn spec(&self) -> Option<&VmSpec> {
        self.record.desired.spec.as_ref()
    }

    /// Runs until the VM is gone or the fleet is dropped. The machine itself outlives this.
    pub async fn run(mut self) {
        self.recover().await;
        loop {
            self.take_news();
            // What is gone leaves no file behind, whatever was said of it meanwhile.
            if self.unsaved && !self.local.gone {
                match self.save(Save::Desired).await {
                    Ok(()) => {
                        self.unsaved = false;
                        self.local.fault = None;
                    }
                    Err(error) => self.unwritten(&StepFault::os("write desired.json", &error)),
                }
            }
            self.local.leaving = self.record.runtime.guest.shutdown_progress.is_some();
            self.publish();
            let action = if self.unsaved {
                Action::Wait(self.local.fault.as_ref().map_or_else(|| self.now(), |f| f.retry_at))
            } else {
                reconcile::decide(&self.local, self.now(), self.context.restart_backoff)
            };
            if self.local.gone {
                return;
            }
            match action {
                Action::Rest if !self.wait(None).await => return,
                Action::Wait(until) if !self.wait(Some(until)).await => return,
                Action::Rest | Action::Wait(_) => {}
                other => self.act(other).await,
            }
        }
    }

    /// Finds out what became of the machine that the record speaks of.
    async fn recover(&mut self) {
        let runtime = &self.record.runtime;
        let same_boot = runtime.host_boot_id == self.context.boot_id;
        let policy = self.spec().map_or(RestartPolicy::Never, |s| s.restart_policy);
        match runtime.life {
            Life::Off => {}
            Life::Died if !same_boot && policy == RestartPolicy::OnFailure && !runtime.clean => {
                self.local.restarts = 0;
            }
            Life::Died => self.local.died = Some(Died { at: self.now(), clean: runtime.clean }),
            Life::Starting | Life::On | Life::Stopping if !same_boot => {
                info!(vm = %self.uuid, "the host was restarted");
                self.local.restarts = 0;
            }
            Life::Starting | Life::On | Life::Stopping => {
                let hypervisor = self.context.hypervisor.clone();
                match hypervisor.adopt(&self.for_guest(), &self.record.runtime).await {
                    Adopted::Running(started) => self.adopted(started).await,
                    Adopted::Died(ended) if self.record.runtime.life == Life::On => self.died(ended).await,
                    Adopted::Died(_) | Adopted::Off => {}
                }
            }
        }
    }

    /// What a guest that was found is given: nothing any more when it is to be stopped, or started anew.
    fn for_guest(&self) -> Arc<DesiredVm> {
        let desired = &self.record.desired;
        let stays = desired.run_state == RunState::Running && self.record.runtime.epoch >= desired.boot_epoch;
        if stays { desired.clone() } else { Arc::new(DesiredVm { spec: None, ..(**desired).clone() }) }
    }

    async fn adopted(&mut self, started: Started) {
        self.local.configured = self.for_guest().spec.as_ref().map_or(0, |_| self.local.generation());
        info!(vm = %self.uuid, process = ?started.process, "adopted a running VM");
        let stopping = self.record.runtime.life == Life::Stopping;
        let desired = &self.record.desired;
        // Whoever was to ask it may have ended before it did: it is asked again.
        let asks = desired.run_state == RunState::Stopped && matches!(desired.stop, StopMode::Asked { .. });
        let kill_at = (stopping && !asks).then(|| self.now() + failpoint::patience(STOP_AFTER_ADOPTION));
        self.local.machine = Machine::On { kill_at };
        let runtime = &mut self.record.runtime;
        if !stopping {
            runtime.life = Life::On;
        }
        (runtime.process, runtime.started_at) = (started.process, Some(started.at));
        self.view = Some(started.view);
        self.save_runtime(true).await;
        // What the view shows from the start is no change of it.
        self.look(true).await;
    }

    /// Takes what the fleet was told last, if it is newer.
    fn take_news(&mut self) {
        let news = self.news.borrow_and_update().clone();
        if self.local.accepts(&news) {
            debug!(vm = %self.uuid, generation = news.generation, run_state = news.run_state.as_str(), "news");
            // A stop that comes after another one may give the guest less time, not more.
            if let (StopMode::Graceful { grace_s }, Machine::On { kill_at: Some(at) }) = (news.stop, self.local.machine)
            {
                let sooner = self.now() + Duration::from_secs(grace_s.into()) + POWER_OFF_TIME;
                self.local.machine = Machine::On { kill_at: Some(at.min(sooner)) };
            }
            self.record.desired = news.clone();
            self.local.desired = Some(news);
            self.unsaved = true;
        }
    }

    /// False when the fleet is gone.
    async fn wait(&mut self, until: Option<Tick>) -> bool {
        let deadline = self.context.began + until.unwrap_or_default();
        let view_changed = async {
            match &mut self.view {
                Some(view) => view.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let seen = tokio::select! {
            biased;
            news = self.news.changed() => return news.is_ok(),
            alive = view_changed => Some(alive),
            () = tokio::time::sleep_until(deadline), if until.is_some() => None,
        };
        if let Some(alive) = seen {
            self.look(alive).await;
        }
        true
    }

    /// Takes in what the machine's view shows. `alive` is false when whoever showed it has gone without a word.
    async fn look(&mut self, alive: bool) {
        let Some(view) = self.view.as_mut().map(|v| v.borrow_and_update().clone()) else { return };
        self.paused = view.paused;
        if view.guest != self.record.runtime.guest {
            self.record.runtime.guest = view.guest;
            self.save_runtime(false).await;
        }
        let lost = || Ended { at: clock::now(), reason: "the VM is not watched any more".to_owned(), clean: false };
        if let Some(ended) = view.ended.or_else(|| (!alive).then(lost)) {
            if self.record.runtime.life == Life::Stopping {
                self.off(ended.at, ended.reason).await;
            } else {
                self.died(ended).await;
            }
        }
    }

    async fn died(&mut self, ended: Ended) {
        warn!(vm = %self.uuid, epoch = self.local.epoch, reason = %ended.reason, "the VM ended by itself");
        self.local.died = Some(Died { at: self.now(), clean: ended.clean });
        self.end(Life::Died, ended).await;
    }

    async fn off(&mut self, at: holdfast_model::Timestamp, reason: String) {
        info!(vm = %self.uuid, epoch = self.local.epoch, reason, "stopped");
        self.end(Life::Off, Ended { at, reason, clean: true }).await;
    }

    async fn end(&mut self, life: Life, ended: Ended) {
        self.local.machine = Machine::Off;
        (self.view, self.paused) = (None, None);
        let runtime = &mut self.record.runtime;
        (runtime.life, runtime.process, runtime.clean) = (life, None, ended.clean);
        (runtime.exited_at, runtime.exit_reason) = (Some(ended.at), Some(ended.reason));
        runtime.guest.agent = false;
        self.save_runtime(true).await;
    }

    async fn act(&mut self, action: Action) {
        debug!(vm = %self.uuid, ?action, "acts");
        let result = match action {
            Action::Rest | Action::Wait(_) => Ok(()),
            Action::Prepare => self.prepare().await,
            Action::Start { epoch, restarts } => self.start(epoch, restarts).await,
            Action::Configure => self.configure().await,
            Action::Shutdown { grace_s } => self.shutdown(grace_s).await,
            Action::GiveUp => return self.give_up(),
            Action::Withdraw => self.withdraw().await,
            Action::Kill => self.kill().await,
            Action::Remove => self.remove().await,
        };
        match result {
            Ok(()) => self.local.fault = None,
            Err(fault) => self.fail(&fault),
        }
    }

    /// What is wanted could not be written down. A removal goes on all the same where the disk is full, because it is what
    /// makes room: should this node be killed before its end, the server says it again.
    fn unwritten(&mut self, fault: &StepFault) {
        if fault.code == DISK_FULL && self.record.desired.run_state == RunState::Absent {
            warn!(vm = %self.uuid, message = %fault.message, "removed without a note of it");
            self.unsaved = false;
        } else {
            self.fail(fault);
        }
    }

    fn fail(&mut self, fault: &StepFault) {
        let generation = self.local.generation();
        let before = self.local.fault.as_ref().filter(|f| f.generation == generation);
        let attempts = before.map_or(0, |f| f.attempts) + 1;
        let retry_at = Fault::retry_at(self.now(), attempts, rand::random());
        warn!(vm = %self.uuid, generation, attempts, code = fault.code, message = %fault.message, "a step failed");
        self.local.fault = Some(Fault {
            generation,
            code: fault.code.to_owned(),
            message: fault.message.clone(),
            retryable: fault.retryable,
            attempts,
            retry_at,
        });
    }

    async fn prepare(&mut self) -> Result<(), StepFault> {
        let spec = self.spec().ok_or_else(|| StepFault::lasting("bad_spec", "no spec"))?;
        failpoint::hit("prepare.before");
        if failpoint::fails("prepare") {
            return Err(StepFault::lasting("failpoint", "prepare was told to fail"));
        }
        self.context.hypervisor.prepare(spec).await?;
        failpoint::hit("prepare.after");
        self.local.prepared = Some(self.local.generation());
        Ok(())
    }

    async fn start(&mut self, epoch: u64, restarts: u32) -> Result<(), StepFault> {
        (self.local.epoch, self.local.restarts, self.local.died) = (epoch, restarts, None);
        self.record.runtime = Runtime {
            life: Life::Starting,
            epoch,
            restarts,
            host_boot_id: self.context.boot_id.clone(),
            ..Runtime::default()
        };
        self.save(Save::Runtime { durable: true }).await.map_err(|e| StepFault::os("write runtime.json", &e))?;
        self.publish();
        let hypervisor = self.context.hypervisor.clone();
        failpoint::hit("start.before");
        let started = match failpoint::fails("start") {
            true => Err(StepFault::lasting("failpoint", "start was told to fail")),
            false => hypervisor.start(&self.record.desired).await,
        };
        failpoint::hit("start.after");
        match started {
            Ok(started) => {
                info!(vm = %self.uuid, epoch, restarts, process = ?started.process, "started");
                let runtime = &mut self.record.runtime;
                (runtime.life, runtime.process, runtime.started_at) = (Life::On, started.process, Some(started.at));
                self.local.machine = Machine::On { kill_at: None };
                self.local.configured = self.local.generation();
                self.view = Some(started.view);
                self.save_runtime(true).await;
                self.look(true).await;
                Ok(())
            }
            Err(fault) => {
                self.record.runtime.life = Life::Off;
                self.save_runtime(true).await;
                Err(fault)
            }
        }
    }

    async fn configure(&mut self) -> Result<(), StepFault> {
        failpoint::hit("configure.before");
        self.context.hypervisor.configure(&self.record.desired).await;
        failpoint::hit("configure.after");
        self.local.configured = self.local.generation();
        Ok(())
    }

    async fn shutdown(&mut self, grace_s: u32) -> Result<(), StepFault> {
        self.record.runtime.life = Life::Stopping;
        self.save_runtime(true).await;
        let rest = match self.record.desired.stop {
            StopMode::Asked { .. } => ASKED_TIME,
            StopMode::Graceful { .. } | StopMode::Hard => POWER_OFF_TIME,
        };
        self.local.machine = Machine::On { kill_at: Some(self.now() + Duration::from_secs(grace_s.into()) + rest) };
        failpoint::hit("shutdown.before");
        self.context.hypervisor.shutdown(self.uuid, grace_s).await;
        failpoint::hit("shutdown.after");
        Ok(())
    }

    fn give_up(&mut self) {
        let fault = reconcile::given_up(&self.local, self.now());
        warn!(vm = %self.uuid, generation = fault.generation, "the guest does not power off");
        self.local.fault = Some(fault);
    }

    async fn withdraw(&mut self) -> Result<(), StepFault> {
        info!(vm = %self.uuid, "asked in vain to power off; it runs on");
        self.context.hypervisor.shutdown_withdraw(self.uuid).await;
        self.local.machine = Machine::On { kill_at: None };
        self.record.runtime.life = Life::On;
        self.save_runtime(true).await;
        Ok(())
    }

    async fn kill(&mut self) -> Result<(), StepFault> {
        if self.record.runtime.life != Life::Stopping {
            self.record.runtime.life = Life::Stopping;
            self.save_runtime(true).await;
        }
        failpoint::hit("kill.before");
        self.context.hypervisor.kill(self.uuid).await?;
        failpoint::hit("kill.after");
        self.off(clock::now(), "it was stopped".to_owned()).await;
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), StepFault> {
        failpoint::hit("remove.before");
        self.context.hypervisor.remove(self.uuid).await?;
        failpoint::hit("remove.after");
        info!(vm = %self.uuid, "removed");
        self.local.gone = true;
        Ok(())
    }

    /// Writes the runtime; a failure is only logged, because the machine can be found without it.
    async fn save_runtime(&mut self, durable: bool) {
        if let Err(error) = self.save(Save::Runtime { durable }).await {
            warn!(vm = %self.uuid, %error, "runtime.json cannot be written");
        }
    }

    async fn save(&self, what: Save) -> io::Result<()> {
        let write = move |records: &Records, record: &Record| match what {
            Save::Desired => records.save_desired(record),
            Save::Runtime { durable } => records.save_runtime(record, durable),
        };
        let records = self.context.hypervisor.records();
        if records.layout() == Layout::Files {
            return write(records, &self.record);
        }
        let (records, record) = (records.clone(), self.record.clone());
        let written = tokio::task::spawn_blocking(move || write(&records, &record)).await;
        written.unwrap_or_else(|e| Err(io::Error::other(e)))
    }

    fn publish(&self) {
        let runtime = &self.record.runtime;
        let phase = reconcile::phase(&self.local);
        self.context.reports.publish(VmReport {
            uuid: self.uuid,
            generation: self.local.generation(),
            outcome: reconcile::outcome(&self.local),
            phase,
            boot_epoch: self.local.epoch,
            restarts: self.local.restarts,
            agent: runtime.guest.agent,
            boot_progress: runtime.guest.boot_progress.clone(),
            boot_error: runtime.guest.boot_error.clone(),
            app_revision: runtime.guest.app_revision,
            shutdown_progress: runtime.guest.shutdown_progress.clone(),
            started_at: runtime.started_at,
            exited_at: runtime.exited_at,
            exit_reason: runtime.exit_reason.clone(),
            will_restart: reconcile::will_restart(&self.local),
            paused: self.paused.map(str::to_owned),
        });
    }
}
