//! Deleting a CVM at a time.
//!
//! The one rule: when the time has come, the deletion is an operation like any other: the one who asked for it is its actor,
//! its audit row carries the id of their request, and a CVM that is busy is deleted when its turn comes.

use holdfast_engine::ops;
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::operation::{Diff, FieldDiff, Value};
use holdfast_model::preview::Preview;
use holdfast_model::vm::{StopMode, VmStatus};
use holdfast_store::Store;
use holdfast_store::accept::{IfBusy, Touch, VmSubmit, vm_operation_accept};
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::queue::{self, provisional};
use holdfast_store::schedules::{schedule_drop, schedule_set, schedule_take};
use holdfast_store::vms::Vm;
use tokio::time::Instant;

use crate::vms::not_found;
use crate::{Control, Principal, RequestInfo};

impl Control {
    /// Sets when a CVM is to be deleted; `None`: at no time. Needs no turn: nothing of the CVM changes.
    pub async fn vm_schedule_delete(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        at: Option<Timestamp>,
    ) -> Result<Vm, Error> {
        let vm_id = self.vm_find(who, id).await?.id;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Store::vm_in(&mut tx, vm_id).await;
        }
        let before = Store::vm_in(&mut tx, vm_id).await?;
        if before.deleted_at.is_some() {
            return Err(not_found());
        }
        let action = match at {
            Some(at) if at <= now => {
                let why = "must be in the future";
                return Err(Error::field("body", "scheduled_delete_at", "value_error", why));
            }
            Some(at) => {
                schedule_set(&mut tx, vm_id, at, who, info).await?;
                "vm.scheduled_delete.set"
            }
            None => {
                schedule_drop(&mut tx, vm_id).await?;
                "vm.scheduled_delete.cancel"
            }
        };
        let entry =
            audit::Entry { action, target_type: "vm", target_id: &before.uuid, operation_id: None, status_code: 200 };
        audit_insert(&mut tx, who, info, entry, now).await?;
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        let changes = diff(before.scheduled_delete_at, vm.scheduled_delete_at);
        self.write_end(tx, info, Preview { changes, ..Preview::default() }).await?;
        Ok(vm)
    }

    /// Accepts the deletions that are due, of at most `limit` CVMs. Returns how many were.
    pub async fn scheduled_deletes(&self, limit: i64) -> Result<usize, Error> {
        let mut done = 0;
        for vm in self.store.deletes_due(limit, self.now()).await? {
            match self.scheduled_delete(vm).await {
                Ok(()) => done += 1,
                Err(error) if error.code == Code::Unavailable => return Err(error),
                // A fault of one of them; the others are due all the same.
                Err(error) => tracing::error!(vm, %error, "a scheduled delete cannot be accepted"),
            }
        }
        Ok(done)
    }

    async fn scheduled_delete(&self, vm_id: i64) -> Result<(), Error> {
        let (now, began) = (self.now(), Instant::now());
        let mut tx = self.store.begin().await?;
        // Cancelled, put off, or gone meanwhile.
        let Some(due) = schedule_take(&mut tx, vm_id, now).await? else { return Ok(()) };
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        let line = queue::line(&mut tx, "vm", vm_id).await?;
        if line.as_ref().is_some_and(|line| line.ends_as == VmStatus::Deleted.as_str()) {
            tracing::info!(vm = vm.uuid, "a scheduled delete finds the CVM on its way out");
            return holdfast_store::commit(tx).await;
        }
        let from = line.map_or(vm.status()?.as_str().to_owned(), |line| line.ends_as);
        let plan = &ops::VM_DELETE;
        let submit = VmSubmit {
            plan,
            vm_id,
            vm_uuid: &vm.uuid,
            vm_name: &vm.name,
            compose_hash: &vm.compose_hash,
            status_before: vm.status()?,
            request: serde_json::json!({ "stop": StopMode::Hard, "scheduled_delete_at": due.at.to_string() }),
            diff: provisional(&from, plan).into_iter().map(|entry| ("status".to_owned(), entry)).collect(),
            touches: vec![Touch { kind: "node", id: vm.node_id, role: "placed_on" }],
            status_code: 204,
            // However many wait already: this one was asked for long before.
            if_busy: IfBusy::Queue { limit: i64::MAX },
        };
        let (operation, uuid) = vm_operation_accept(&mut tx, &due.who, &due.info, submit, now).await?;
        tracing::info!(vm = vm.uuid, operation = %uuid, by = due.who.username, "a scheduled delete is due");
        self.accept_end(tx, &due.info, operation, began).await.map(drop)
    }
}

fn diff(before: Option<i64>, after: Option<i64>) -> Diff {
    let value = |at: Option<i64>| at.map(|at| Value::from(Timestamp(at).to_string()));
    let entry = FieldDiff { from: value(before), to: value(after) };
    if before == after { Diff::new() } else { Diff::from([("scheduled_delete_at".to_owned(), entry)]) }
}
