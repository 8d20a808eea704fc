//! CVMs: finding them, and asking for changes of their power state or their end.

use holdfast_engine::{Plan, ops};
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_model::vm::{StopMode, VmStatus};
use holdfast_store::accept::{IfBusy, Touch, VmSubmit, vm_operation_accept};
use holdfast_store::desired::vm_is_leaving;
use holdfast_store::history::Operation;
use holdfast_store::idempotency::{idempotency_operation, idempotency_take};
use holdfast_store::interventions::operation_link_retry;
use holdfast_store::queue::{self, provisional};
use holdfast_store::vms::{By, Vm};
use holdfast_store::{Store, Tx};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Control, Principal, RequestInfo};

/// Seconds that a guest gets to stop its app where nobody set others: what `docker stop` gives containers.
pub(crate) const GRACE_S: u32 = 10;
const GRACE: StopMode = StopMode::Graceful { grace_s: GRACE_S };
/// The same for a shutdown, which leaves a guest alone that does not make it.
const SHUTDOWN_S: u32 = 60;

/// Reads an id in any of the forms that clients send. `None` for one that can name nothing.
fn parse_id(text: &str) -> Vec<By<'_>> {
    let is_hex40 = |t: &str| t.len() == 40 && t.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if let Some(rest) = text.strip_prefix("app_") {
        return if is_hex40(rest) { vec![By::AppId(rest)] } else { Vec::new() };
    }
    if let Some(rest) = text.strip_prefix("instance_") {
        return if is_hex40(rest) { vec![By::InstanceId(rest)] } else { Vec::new() };
    }
    if text.starts_with(Prefix::Cvm.as_str()) {
        return hashid::decode(Prefix::Cvm, text).map(By::Key).into_iter().collect();
    }
    if let Ok(key) = text.parse::<i64>() {
        return vec![By::Key(key)];
    }
    if is_hex40(text) {
        return vec![By::AppId(text), By::InstanceId(text), By::Name(text)];
    }
    vec![By::Name(text)]
}

impl Control {
    /// The CVM that `id` names in what the caller sees, also one that was deleted (by its own id, not by name).
    /// What belongs to another workspace, or to a project that their key is not for, is not found, as if it did not exist.
    pub async fn vm_find_any(&self, who: &Principal, id: &str) -> Result<Vm, Error> {
        let uuid = Uuid::try_parse(id).ok().filter(|_| id.len() == 32 || id.len() == 36).map(|u| u.to_string());
        let forms = match &uuid {
            Some(uuid) => vec![By::Uuid(uuid)],
            None => parse_id(id),
        };
        let scope = who.scope();
        for by in forms {
            let by_name = matches!(by, By::Name(_));
            let mut found = self.store.vms_by(&scope, by).await?;
            match (found.pop(), found.is_empty()) {
                (Some(vm), true) => return Ok(vm),
                (Some(_), false) if by_name => {
                    return Err(Error::new(Code::NameAmbiguous, format!("Several CVMs are named \"{id}\".")));
                }
                (Some(_), false) => {
                    return Err(Error::new(Code::IdAmbiguous, format!("\"{id}\" names several CVMs.")));
                }
                (None, _) => {}
            }
        }
        Err(not_found())
    }

    /// The same, only while it lives.
    pub async fn vm_find(&self, who: &Principal, id: &str) -> Result<Vm, Error> {
        let vm = self.vm_find_any(who, id).await?;
        if vm.deleted_at.is_some() { Err(not_found()) } else { Ok(vm) }
    }

    pub async fn vm_power_on(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Vm, Error> {
        self.vm_change(who, info, id, &ops::VM_POWER_ON, Some(StopMode::Hard)).await
    }

    pub async fn vm_power_off(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Vm, Error> {
        self.vm_change(who, info, id, &ops::VM_POWER_OFF, None).await
    }

    /// Asks the guest to power off, as the CVM's settings say.
    pub async fn vm_shutdown(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Vm, Error> {
        self.vm_change(who, info, id, &ops::VM_SHUTDOWN, None).await
    }

    /// With `force` the guest gets no time to stop its app.
    pub async fn vm_restart(&self, who: &Principal, info: &RequestInfo, id: &str, force: bool) -> Result<Vm, Error> {
        let stop = if force { StopMode::Hard } else { GRACE };
        self.vm_change(who, info, id, &ops::VM_RESTART, Some(stop)).await
    }

    pub async fn vm_delete(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Vm, Error> {
        self.vm_change(who, info, id, &ops::VM_DELETE, None).await
    }

    pub(crate) async fn vm_change(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        plan: &'static Plan,
        stop: Option<StopMode>,
    ) -> Result<Vm, Error> {
        let status_code = if plan.target == VmStatus::Deleted { 204 } else { 200 };
        let request = Submission { plan, stop, if_busy: IfBusy::Refuse, retry_of: None, status_code };
        self.vm_submit(who, info, id, request).await.map(|submitted| submitted.vm)
    }

    /// Accepts an operation on the CVM with this UUID, which waits for its turn when the CVM is busy.
    pub async fn vm_queue(
        &self,
        who: &Principal,
        info: &RequestInfo,
        uuid: &str,
        plan: &'static Plan,
    ) -> Result<Operation, Error> {
        if uuid.len() != 36 || Uuid::try_parse(uuid).is_err() {
            return Err(not_found());
        }
        let if_busy = IfBusy::Queue { limit: self.settings.queue_limit };
        let request = Submission { plan, stop: None, if_busy, retry_of: None, status_code: 200 };
        let Submitted { operation, .. } = self.vm_submit(who, info, uuid, request).await?;
        let operation = operation.ok_or_else(|| Error::internal("an idempotency key without its operation"))?;
        self.operation_find(who, &operation.to_string()).await
    }

    /// Accepts a failed operation's plan again, on the same CVM.
    pub(crate) async fn vm_resubmit(
        &self,
        who: &Principal,
        info: &RequestInfo,
        failed: &Operation,
        plan: &'static Plan,
    ) -> Result<Uuid, Error> {
        let retry_of = Some(failed.id);
        let request = Submission { plan, stop: None, if_busy: IfBusy::Refuse, retry_of, status_code: 202 };
        let Submitted { operation, .. } = self.vm_submit(who, info, &failed.resource_uuid, request).await?;
        // A repetition under the same idempotency key accepted nothing new: the first answer stands.
        Ok(operation.unwrap_or(failed.uuid.parse().map_err(Error::internal)?))
    }

    /// Accepts an operation on a CVM that exists.
    async fn vm_submit(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        request: Submission,
    ) -> Result<Submitted, Error> {
        let Submission { plan, stop, if_busy, retry_of, status_code } = request;
        let vm_id = match &info.idempotency {
            // What a repeated delete deleted is not found any more, and still is what it was about.
            Some(_) => self.vm_find_any(who, id).await?.id,
            None => self.vm_find(who, id).await?.id,
        };
        let (now, began) = (self.now(), Instant::now());
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            let operation = idempotency_operation(&mut tx, who.workspace_id, key).await?;
            let operation = operation.map(|uuid| uuid.parse().map_err(Error::internal)).transpose()?;
            return Ok(Submitted { vm: Store::vm_in(&mut tx, vm_id).await?, operation });
        }
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        let (from, if_busy) = check_turn(&mut tx, &vm, plan, if_busy).await?;
        let submit = VmSubmit {
            plan,
            vm_id,
            vm_uuid: &vm.uuid,
            vm_name: &vm.name,
            compose_hash: &vm.compose_hash,
            status_before: vm.status()?,
            request: serde_json::json!({ "stop": stop.unwrap_or_else(|| stop_of(plan, &vm)) }),
            diff: provisional(&from, plan).into_iter().map(|entry| ("status".to_owned(), entry)).collect(),
            touches: vec![Touch { kind: "node", id: vm.node_id, role: "placed_on" }],
            status_code,
            if_busy,
        };
        let (operation, uuid) = vm_operation_accept(&mut tx, who, info, submit, now).await?;
        if let Some(of) = retry_of {
            operation_link_retry(&mut tx, operation, of).await?;
        }
        let vm = match if_busy {
            IfBusy::Nobody => vm.accepted(plan, uuid, now)?,
            // Whose turn it is the line says.
            IfBusy::Refuse | IfBusy::Queue { .. } => Store::vm_in(&mut tx, vm_id).await?,
        };
        self.accept_end(tx, info, operation, began).await?;
        Ok(Submitted { vm, operation: Some(uuid) })
    }
}

/// What is asked of a CVM.
struct Submission {
    plan: &'static Plan,
    /// `None`: as the plan and the CVM's settings say.
    stop: Option<StopMode>,
    if_busy: IfBusy,
    /// The failed operation that this repeats.
    retry_of: Option<i64>,
    /// What the audit row says that the caller got.
    status_code: u16,
}

/// What came of it.
struct Submitted {
    /// As it is from now on.
    vm: Vm,
    /// `None` for a repetition of something that accepted none.
    operation: Option<Uuid>,
}

/// Refuses a plan that cannot begin, and not wait either. Returns the status that it should find when its turn comes, and
/// what is to become of it should somebody be there: nobody is, in this transaction, once that was looked at here.
pub(crate) async fn check_turn(tx: &mut Tx, vm: &Vm, plan: &Plan, if_busy: IfBusy) -> Result<(String, IfBusy), Error> {
    if vm.deleted_at.is_some() {
        return Err(not_found());
    }
    match (queue::line(tx, "vm", vm.id).await?, if_busy) {
        // Whether it may begin is decided when its turn comes.
        (Some(line), IfBusy::Queue { .. }) => Ok((line.ends_as, if_busy)),
        (Some(line), IfBusy::Refuse | IfBusy::Nobody) => {
            let running = line.running.as_deref().unwrap_or("operation");
            Err(Error::new(Code::Busy, format!("A {running} of \"{}\" is running.", vm.name)))
        }
        (None, _) => {
            let (status, leaving) = (vm.status()?, vm_is_leaving(tx, vm.id).await?);
            match plan.refusal(&format!("\"{}\"", vm.name), status, leaving) {
                Some(failure) => Err(Error::new(failure.code, failure.message)),
                None => Ok((status.as_str().to_owned(), IfBusy::Nobody)),
            }
        }
    }
}

/// How a plan stops the guest where its caller does not say.
fn stop_of(plan: &Plan, vm: &Vm) -> StopMode {
    if plan.target == VmStatus::Deleted {
        // What is destroyed needs no time to save itself.
        return StopMode::Hard;
    }
    if plan.name != ops::VM_SHUTDOWN.name {
        return GRACE;
    }
    let set = vm.shutdown();
    let grace_s = set.timeout_s.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(SHUTDOWN_S);
    if set.force { StopMode::Graceful { grace_s } } else { StopMode::Asked { grace_s } }
}

pub(crate) fn not_found() -> Error {
    Error::new(Code::CvmNotFound, "The requested CVM was not found.")
}
