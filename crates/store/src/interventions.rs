//! What people do to an operation that runs: cancel it, or abandon one that is stuck.
//!
//! The one rule: the check and the write are one transaction, so a cancel that was accepted is one that the engine will
//! find before the pivot.

use holdfast_engine::{Direction, Failure, ops};
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::node::Phase;
use holdfast_model::operation::Status;
use holdfast_model::vm::{RunState, VmStatus};

use crate::desired::{desired_of, report_of};
use crate::operations::{NewEvent, event_append};
use crate::queue::{claims_end, is_waiting, waiting_end};
use crate::sql::{self, record};
use crate::vms::{vm_release, vm_set_status};
use crate::{Tx, fault, stored};

struct Row {
    operation_type: String,
    plan_version: i64,
    status: String,
    direction: String,
    step: i64,
    step_entered: bool,
    resource_id: i64,
    resource_name: String,
}

record!(Row { operation_type, plan_version, status, direction, step, step_entered, resource_id, resource_name });

async fn row(tx: &mut Tx, operation: i64) -> Result<(Row, Status), Error> {
    let row: Row = sql::query(
        "SELECT operation_type, plan_version, status, direction, step, step_entered, resource_id, resource_name
         FROM operation WHERE id = $1",
    )
    .bind(operation)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    let status = stored(Status::parse(&row.status), "operation status", &row.status)?;
    Ok((row, status))
}

/// Asks for a cancel. Refused when the operation is over, is being undone already, or is past its pivot. One that waits
/// in line is over at once.
pub async fn operation_cancel(tx: &mut Tx, operation: i64, by: &str, now: Timestamp) -> Result<(), Error> {
    let (row, status) = row(tx, operation).await?;
    let refuse = |why: String| Err(Error::new(Code::NotCancellable, why));
    let what = format!("The {} of \"{}\"", row.operation_type, row.resource_name);
    if status.is_terminal() || status == Status::Stuck {
        return refuse(format!("{what} is {} already.", status.as_str()));
    }
    if row.direction == Direction::Undo.as_str() {
        return refuse(format!("{what} failed and is being undone already."));
    }
    let version = u32::try_from(row.plan_version).unwrap_or(0);
    let step = usize::try_from(row.step).map_err(Error::internal)?;
    let cancellable = ops::find(&row.operation_type, version).is_some_and(|p| p.can_cancel(step, row.step_entered));
    if !cancellable {
        return refuse(format!("{what} is past the point where it can be undone; it goes on."));
    }
    sql::query(
        "UPDATE operation SET cancel_requested_at = COALESCE(cancel_requested_at, $2),
            cancelled_by = COALESCE(cancelled_by, $3), updated_at = $2,
            wake_at = CASE WHEN wake_at IS NULL THEN NULL ELSE $2 END WHERE id = $1",
    )
    .bind(operation)
    .bind(now.micros())
    .bind(by)
    .execute(tx)
    .await
    .map_err(fault)?;
    if !is_waiting(tx, operation).await? {
        return Ok(());
    }
    let failure = Failure { code: Code::Cancelled, message: format!("cancelled by {by}"), internal: None };
    waiting_end(tx, operation, (Status::Cancelled, &failure), now).await
}

/// Gives a stuck operation up: it becomes failed, its claims are free, its resource stays in `error` for a person to
/// look at. What its node may still hold stays reserved; a VM that its node has removed by now is released.
pub async fn operation_abandon(tx: &mut Tx, operation: i64, by: &str, now: Timestamp) -> Result<(), Error> {
    let (row, status) = row(tx, operation).await?;
    if status != Status::Stuck {
        let why = format!("Only a stuck operation can be abandoned; this one is {}.", status.as_str());
        return Err(Error::new(Code::NotCancellable, why));
    }
    sql::query(
        "UPDATE operation SET status = 'failed', parked = NULL, wake_at = NULL, completed_at = $2, updated_at = $2,
            error_code = COALESCE(error_code, $3), error_message = $4, lease_token = lease_token + 1 WHERE id = $1",
    )
    .bind(operation)
    .bind(now.micros())
    .bind(Code::Internal.id())
    .bind(format!("abandoned by {by}"))
    .execute(tx)
    .await
    .map_err(fault)?;
    let left = vm_has_left(tx, row.resource_id).await?;
    let state = if left { VmStatus::Deleted } else { VmStatus::Error };
    if left {
        vm_release(tx, row.resource_id, now).await?;
    } else {
        vm_set_status(tx, row.resource_id, state, now).await?;
    }
    let version = u32::try_from(row.plan_version).unwrap_or(0);
    let event = ops::find(&row.operation_type, version).map(|plan| plan.event("error"));
    let event = event.unwrap_or_else(|| format!("instance.{}.error", row.operation_type));
    event_append(tx, operation, NewEvent { event_type: &event, step: None, state }, now).await?;
    claims_end(tx, operation, now).await
}

/// True when the VM was to be removed and its node has done so, which it will not say again.
async fn vm_has_left(tx: &mut Tx, vm: i64) -> Result<bool, Error> {
    let (desired, seen) = (desired_of(tx, vm).await?, report_of(tx, vm).await?);
    let (Some(desired), Some(seen)) = (desired, seen) else { return Ok(false) };
    let obeyed = seen.phase == Phase::Absent && seen.generation >= desired.generation;
    Ok(desired.run_state == RunState::Absent && obeyed)
}

/// Links a new operation to the failed one that it repeats.
pub async fn operation_link_retry(tx: &mut Tx, new: i64, of: i64) -> Result<(), Error> {
    sql::query("UPDATE operation SET retry_of = $2 WHERE id = $1")
        .bind(new)
        .bind(of)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// The workspace that an operation belongs to.
pub async fn operation_workspace(tx: &mut Tx, operation: i64) -> Result<i64, Error> {
    sql::query("SELECT workspace_id FROM operation WHERE id = $1")
        .bind(operation)
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}
