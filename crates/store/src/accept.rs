//! Accepting an operation: everything it needs to exist is written by the caller's one transaction, or nothing is.

use holdfast_engine::Plan;
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::operation::Diff;
use holdfast_model::vm::VmStatus;
use uuid::Uuid;

use crate::audit::{self, RequestInfo, audit_insert};
use crate::idempotency::idempotency_link;
use crate::operations::{NewEvent, events_append};
use crate::queue;
use crate::sql;
use crate::tenancy::Principal;
use crate::vms::vm_set_status;
use crate::{Tx, fault, json};

/// A resource that an operation touches, besides its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touch {
    pub kind: &'static str,
    pub id: i64,
    pub role: &'static str,
}

impl Touch {
    /// Only one operation at a time has it.
    fn is_claim(&self) -> bool {
        self.role == "target"
    }
}

/// What becomes of an operation when another one holds or waits for what it claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfBusy {
    /// Nobody is: the caller looked in the same transaction, or what is claimed is new.
    Nobody,
    /// It is not accepted.
    Refuse,
    /// It is accepted and waits for its turn, unless `limit` operations wait for the resource already.
    Queue { limit: i64 },
}

/// An operation on a VM, as the caller asked for it.
#[derive(Debug)]
pub struct VmSubmit<'a> {
    pub plan: &'static Plan,
    pub vm_id: i64,
    pub vm_uuid: &'a str,
    pub vm_name: &'a str,
    pub compose_hash: &'a str,
    /// Status of the VM before this operation.
    pub status_before: VmStatus,
    /// What was asked, without secrets.
    pub request: serde_json::Value,
    /// Provisional; the first step makes it true.
    pub diff: Diff,
    /// Touched but not claimed alone: parents that many operations may touch at a time.
    pub touches: Vec<Touch>,
    /// HTTP status that the audit row says the caller got.
    pub status_code: u16,
    pub if_busy: IfBusy,
}

/// Writes operation, claim or place in the line, first event, resource status and audit row. Fails with `Busy` when
/// another operation is there and this one may not wait, with `QueueFull` when it may but too many do. Returns the
/// operation's row and public id.
pub async fn vm_operation_accept(
    tx: &mut Tx,
    who: &Principal,
    info: &RequestInfo,
    submit: VmSubmit<'_>,
    now: Timestamp,
) -> Result<(i64, Uuid), Error> {
    let plan = submit.plan;
    let uuid = Uuid::new_v4();
    let mut touches = submit.touches;
    touches.push(Touch { kind: "vm", id: submit.vm_id, role: "target" });
    // Sorted, so that two operations that claim several resources cannot wait for each other.
    touches.sort();
    let mut waits = false;
    let looked = submit.if_busy == IfBusy::Nobody;
    for touch in touches.iter().filter(|touch| touch.is_claim() && !looked) {
        let Some(line) = queue::line(tx, touch.kind, touch.id).await? else { continue };
        match submit.if_busy {
            IfBusy::Refuse | IfBusy::Nobody => return Err(busy(submit.vm_name)),
            IfBusy::Queue { limit } if line.waiting >= limit => {
                let message = format!("{} operations wait for \"{}\" already.", line.waiting, submit.vm_name);
                return Err(Error::new(Code::QueueFull, message));
            }
            IfBusy::Queue { .. } => waits = true,
        }
    }
    let id: i64 = sql::query(
        "INSERT INTO operation (uuid, workspace_id, project_id, kind, verb, operation_type, plan_version, target_state,
            resource_id, resource_uuid, resource_name, compose_hash, user_id, username, email, api_key_id,
            client_address, request_id, trace_id, request, diff, status, status_before, direction, step, step_entered,
            generation, sub_operations, wake_at, lease_token, attempts, created_at, updated_at, diff_accepted)
         VALUES ($1, $2, (SELECT project_id FROM vm WHERE id = $8), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
            $15, $16, $17, $18, $19, $20, 'pending', $21, 'forward', 0, FALSE, 0, '[]', $23, 0, 0, $22, $22, $20)
         RETURNING id",
    )
    .bind(uuid.to_string())
    .bind(who.workspace_id)
    .bind(plan.kind.as_str())
    .bind(plan.verb.as_str())
    .bind(plan.name)
    .bind(i64::from(plan.version))
    .bind(plan.target_from(submit.status_before).as_str())
    .bind(submit.vm_id)
    .bind(submit.vm_uuid)
    .bind(submit.vm_name)
    .bind(submit.compose_hash)
    .bind(who.user_id)
    .bind(&who.username)
    .bind(&who.email)
    .bind(who.api_key_id)
    .bind(&info.client_address)
    .bind(&info.request_id)
    .bind(&info.trace_id)
    .bind(submit.request.to_string())
    .bind(json(&submit.diff)?)
    .bind(submit.status_before.as_str())
    .bind(now.micros())
    .bind((!waits).then_some(now.micros()))
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;

    let mut claim =
        sql::query("INSERT INTO operation_resource (operation_id, kind, resource_id, role, held, waiting) ");
    claim.push_values(touches, |row, touch| {
        row.push_bind(id).push_bind(touch.kind).push_bind(touch.id).push_bind(touch.role);
        row.push_bind(touch.is_claim() && !waits).push_bind(touch.is_claim() && waits);
    });
    match claim.execute(tx).await {
        Ok(_) => {}
        Err(e) if e.is_duplicate() => return Err(busy(submit.vm_name)),
        Err(e) => return Err(fault(e)),
    }
    let state = if waits { submit.status_before } else { plan.accepted };
    if !waits && submit.status_before != plan.accepted {
        vm_set_status(tx, submit.vm_id, plan.accepted, now).await?;
    }
    events_append(tx, id, 0, &[NewEvent { event_type: &plan.event("start"), step: None, state }], now).await?;
    let entry = audit::Entry {
        action: &format!("{}.{}", plan.kind.as_str(), plan.name),
        target_type: plan.kind.as_str(),
        target_id: submit.vm_uuid,
        operation_id: Some(id),
        status_code: submit.status_code,
    };
    audit_insert(tx, who, info, entry, now).await?;
    if let Some(key) = &info.idempotency {
        idempotency_link(tx, who.workspace_id, key, id).await?;
    }
    Ok((id, uuid))
}

fn busy(name: &str) -> Error {
    Error::new(Code::Busy, format!("Another operation on \"{name}\" is running."))
}
