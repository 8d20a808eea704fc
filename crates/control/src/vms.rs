//! CVMs: finding them, and asking for changes of their power state or their end.

use holdfast_engine::{Plan, ops};
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_model::operation::{Diff, FieldDiff, Value};
use holdfast_model::vm::{StopMode, VmStatus};
use holdfast_store::Store;
use holdfast_store::accept::{Touch, VmSubmit, vm_operation_accept};
use holdfast_store::desired::vm_is_leaving;
use holdfast_store::history::Operation;
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::interventions::operation_link_retry;
use holdfast_store::vms::{By, Vm};
use uuid::Uuid;

use crate::{Control, Principal, RequestInfo};

/// How a guest is stopped that is to start again: its containers get what `docker stop` gives them.
const GRACE: StopMode = StopMode::Graceful { grace_s: 10 };

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
    /// The CVM that `id` names in the caller's workspace, also one that was deleted (by its own id, not by name).
    /// What belongs to another workspace is not found, as if it did not exist.
    pub async fn vm_find_any(&self, who: &Principal, id: &str) -> Result<Vm, Error> {
        let uuid = Uuid::try_parse(id).ok().filter(|_| id.len() == 32 || id.len() == 36).map(|u| u.to_string());
        let forms = match &uuid {
            Some(uuid) => vec![By::Uuid(uuid)],
            None => parse_id(id),
        };
        for by in forms {
            let by_name = matches!(by, By::Name(_));
            let mut found = self.store.vms_by(who.workspace_id, by).await?;
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
        self.vm_change(who, info, id, &ops::VM_POWER_ON, StopMode::Hard, &MAY_START).await
    }

    pub async fn vm_power_off(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Vm, Error> {
        self.vm_change(who, info, id, &ops::VM_POWER_OFF, GRACE, &MAY_STOP).await
    }

    /// With `force` the guest gets no time to stop its app.
    pub async fn vm_restart(&self, who: &Principal, info: &RequestInfo, id: &str, force: bool) -> Result<Vm, Error> {
        let stop = if force { StopMode::Hard } else { GRACE };
        self.vm_change(who, info, id, &ops::VM_RESTART, stop, &MAY_STOP).await
    }

    pub async fn vm_delete(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Vm, Error> {
        // What is destroyed needs no time to save itself.
        self.vm_change(who, info, id, &ops::VM_DELETE, StopMode::Hard, &VmStatus::ALL).await
    }

    async fn vm_change(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        plan: &'static Plan,
        stop: StopMode,
        allowed: &[VmStatus],
    ) -> Result<Vm, Error> {
        let request = Submission { plan, stop, allowed, retry_of: None };
        self.vm_submit(who, info, id, request).await.map(|(vm, _)| vm)
    }

    /// Accepts a failed operation's plan again, on the same CVM.
    pub(crate) async fn vm_resubmit(
        &self,
        who: &Principal,
        info: &RequestInfo,
        failed: &Operation,
        plan: &'static Plan,
    ) -> Result<Uuid, Error> {
        let stop = if plan.target == VmStatus::Deleted { StopMode::Hard } else { GRACE };
        let allowed = match plan.name {
            name if name == ops::VM_POWER_ON.name => &MAY_START[..],
            name if name == ops::VM_DELETE.name => &VmStatus::ALL[..],
            _ => &MAY_STOP[..],
        };
        let request = Submission { plan, stop, allowed, retry_of: Some(failed.id) };
        let (_, operation) = self.vm_submit(who, info, &failed.resource_uuid, request).await?;
        // A repetition under the same idempotency key accepted nothing new: the first answer stands.
        Ok(operation.unwrap_or(failed.uuid.parse().map_err(Error::internal)?))
    }

    /// Accepts an operation on a CVM that exists. Returns the CVM as it is from now on, and the operation's id unless
    /// the request was a repetition.
    async fn vm_submit(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        request: Submission<'_>,
    ) -> Result<(Vm, Option<Uuid>), Error> {
        let Submission { plan, stop, allowed, retry_of } = request;
        let vm_id = match &info.idempotency {
            // What a repeated delete deleted is not found any more, and still is what it was about.
            Some(_) => self.vm_find_any(who, id).await?.id,
            None => self.vm_find(who, id).await?.id,
        };
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok((Store::vm_in(&mut tx, vm_id).await?, None));
        }
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        if vm.deleted_at.is_some() {
            return Err(not_found());
        }
        let status = vm.status()?;
        if vm.in_progress() {
            let running = vm.operation_type.as_deref().unwrap_or("operation");
            return Err(Error::new(Code::Busy, format!("A {running} of \"{}\" is running.", vm.name)));
        }
        if plan.target != VmStatus::Deleted && vm_is_leaving(&mut tx, vm_id).await? {
            let message = format!("\"{}\" is being removed; it can only be deleted.", vm.name);
            return Err(Error::new(Code::WrongState, message));
        }
        if !allowed.contains(&status) {
            let words: Vec<_> = allowed.iter().map(|s| s.as_str()).collect();
            let message = format!(
                "\"{}\" is {}; {} needs it to be {}.",
                vm.name,
                status.as_str(),
                plan.name.replace('_', " "),
                words.join(" or ")
            );
            return Err(Error::new(Code::WrongState, message));
        }
        let submit = VmSubmit {
            plan,
            vm_id,
            vm_uuid: &vm.uuid,
            vm_name: &vm.name,
            compose_hash: &vm.compose_hash,
            status_before: status,
            request: serde_json::json!({ "stop": stop }),
            diff: status_diff(status, plan.target),
            touches: vec![Touch { kind: "node", id: vm.node_id, role: "placed_on" }],
            status_code: if plan.target == VmStatus::Deleted { 204 } else { 200 },
        };
        let (operation, uuid) = vm_operation_accept(&mut tx, who, info, submit, now).await?;
        if let Some(of) = retry_of {
            operation_link_retry(&mut tx, operation, of).await?;
        }
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        holdfast_store::commit(tx).await?;
        self.ring_work();
        Ok((vm, Some(uuid)))
    }
}

/// What is asked of a CVM.
struct Submission<'a> {
    plan: &'static Plan,
    stop: StopMode,
    /// Statuses it may be asked in.
    allowed: &'a [VmStatus],
    /// The failed operation that this repeats.
    retry_of: Option<i64>,
}

const MAY_START: [VmStatus; 3] = [VmStatus::Stopped, VmStatus::Exited, VmStatus::Error];
const MAY_STOP: [VmStatus; 4] = [VmStatus::Running, VmStatus::Starting, VmStatus::Exited, VmStatus::Error];

fn status_diff(from: VmStatus, to: VmStatus) -> Diff {
    if from == to {
        return Diff::new();
    }
    let entry = FieldDiff { from: Some(Value::from(from.as_str())), to: Some(Value::from(to.as_str())) };
    Diff::from([("status".to_owned(), entry)])
}

pub(crate) fn not_found() -> Error {
    Error::new(Code::CvmNotFound, "The requested CVM was not found.")
}
