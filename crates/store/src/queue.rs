//! The line before a resource: one operation holds its claim, others wait in the order in which they were accepted.
//!
//! The one rule: whatever ends an operation calls [`claims_end`] in the same transaction, so nobody waits for a claim
//! that is free. An operation takes all of its claims or none, and only when nobody who was accepted before it waits for
//! one of them: so nobody is overtaken, and no two wait for each other.
//!
//! ```text
//! accept -> waits: no claim, no lease, `wake_at` null -> its turn: holds its claims -> over
//!             |  '-- its turn, but its plan must not begin as things stand now -> failed, and the next one's turn
//!             '-- cancelled: leaves the line
//! ```

use std::collections::{BTreeSet, HashMap};

use holdfast_engine::{Failure, Plan, ops};
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::operation::{Diff, FieldDiff, Status, Value};
use holdfast_model::vm::VmStatus;

use crate::desired::vm_is_leaving;
use crate::operations::{NewEvent, event_append};
use crate::sql::{self, record};
use crate::vms::vm_set_status;
use crate::{Store, Tx, fault, from_json, json, stored};

/// A resource that an operation claims: kind and internal key.
type Claim = (String, i64);

/// Who is before a newcomer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub waiting: i64,
    /// Type of the operation that holds the claim; `None` when it is free, and whoever waits does so for another one.
    pub running: Option<String>,
    /// Where the resource should be when all of them are done.
    pub ends_as: String,
}

/// The line before a resource; `None` when nobody is there.
pub async fn line(tx: &mut Tx, kind: &str, resource: i64) -> Result<Option<Line>, Error> {
    let (waiting, newest, holder): (i64, Option<i64>, Option<i64>) = sql::query(
        "SELECT COUNT(*), MAX(operation_id), (SELECT operation_id FROM operation_resource
            WHERE kind = $1 AND resource_id = $2 AND held)
         FROM operation_resource WHERE kind = $1 AND resource_id = $2 AND waiting",
    )
    .bind(kind)
    .bind(resource)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    let Some(last) = newest.or(holder) else { return Ok(None) };
    let (ends_as, running) = sql::query(
        "SELECT target_state, (SELECT operation_type FROM operation WHERE id = $2) FROM operation WHERE id = $1",
    )
    .bind(last)
    .bind(holder)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    Ok(Some(Line { waiting, running, ends_as }))
}

/// What an operation says it changes before its first step makes that true.
pub fn provisional(from: &str, plan: &Plan) -> Option<FieldDiff> {
    if plan.revises() {
        return None;
    }
    let to = plan.target.as_str();
    (from != to).then(|| FieldDiff { from: Some(Value::from(from)), to: Some(Value::from(to)) })
}

impl Store {
    /// For those of the operations that wait in line: public id of the one that holds what they wait for.
    pub async fn operations_waiting_for(&self, operations: &[i64]) -> Result<HashMap<i64, String>, Error> {
        if operations.is_empty() {
            return Ok(HashMap::new());
        }
        let mut query = sql::query(
            "SELECT w.operation_id, o.uuid FROM operation_resource w
             JOIN operation_resource h ON h.kind = w.kind AND h.resource_id = w.resource_id AND h.held
             JOIN operation o ON o.id = h.operation_id WHERE w.waiting AND w.operation_id IN (",
        );
        query.push_list(operations).push(")");
        let rows: Vec<(i64, String)> = query.fetch_all(self.read()).await.map_err(fault)?;
        Ok(rows.into_iter().collect())
    }
}

/// Gives back what an operation that is over held or waited for, and lets those begin whose turn it is.
pub(crate) async fn claims_end(tx: &mut Tx, operation: i64, now: Timestamp) -> Result<(), Error> {
    let free = claims_drop(tx, operation).await?;
    turns(tx, free, Some(operation), now).await
}

/// At the start of a server: lets those begin who wait for nobody. There are none unless something went wrong.
pub(crate) async fn queue_recover(tx: &mut Tx, now: Timestamp) -> Result<(), Error> {
    let waited_for: Vec<Claim> = sql::query("SELECT DISTINCT kind, resource_id FROM operation_resource WHERE waiting")
        .fetch_all(&mut **tx)
        .await
        .map_err(fault)?;
    turns(tx, waited_for.into_iter().collect(), None, now).await
}

/// Ends an operation that waits: it leaves the line and changes nothing.
pub(crate) async fn waiting_end(
    tx: &mut Tx,
    operation: i64,
    end: (Status, &Failure),
    now: Timestamp,
) -> Result<(), Error> {
    let turn = turn_read(tx, operation).await?;
    let free = turn_end(tx, &turn, end, now).await?;
    turns(tx, free, Some(operation), now).await
}

/// True while an operation has been accepted but its turn has not come.
pub(crate) async fn is_waiting(tx: &mut Tx, operation: i64) -> Result<bool, Error> {
    let waiting: Option<i64> =
        sql::query("SELECT operation_id FROM operation_resource WHERE operation_id = $1 AND waiting LIMIT 1")
            .bind(operation)
            .fetch_optional(&mut **tx)
            .await
            .map_err(fault)?;
    Ok(waiting.is_some())
}

/// Lets operations begin until none is left whose turn it is. `ended` is the operation that made the claims free.
async fn turns(tx: &mut Tx, mut free: BTreeSet<Claim>, ended: Option<i64>, now: Timestamp) -> Result<(), Error> {
    while let Some((kind, resource)) = free.pop_first() {
        if let Some(next) = next(tx, &kind, resource).await? {
            // One that fails at once leaves its claims to the one after it.
            free.extend(turn(tx, next, ended, now).await?);
        }
    }
    Ok(())
}

/// The first in line before a resource, if nothing that it claims is held or waited for by somebody before it.
async fn next(tx: &mut Tx, kind: &str, resource: i64) -> Result<Option<i64>, Error> {
    sql::query(
        "SELECT head.operation_id FROM (SELECT MIN(operation_id) AS operation_id FROM operation_resource
            WHERE kind = $1 AND resource_id = $2 AND waiting) AS head
         WHERE head.operation_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM operation_resource mine
            WHERE mine.operation_id = head.operation_id AND mine.waiting AND (
                EXISTS (SELECT 1 FROM operation_resource other WHERE other.kind = mine.kind
                    AND other.resource_id = mine.resource_id AND other.held)
                OR EXISTS (SELECT 1 FROM operation_resource other WHERE other.kind = mine.kind
                    AND other.resource_id = mine.resource_id AND other.waiting
                    AND other.operation_id < head.operation_id)))",
    )
    .bind(kind)
    .bind(resource)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)
}

/// An operation whose turn it is, and its resource as it stands now.
struct Turn {
    id: i64,
    operation_type: String,
    plan_version: i64,
    diff: String,
    vm_id: i64,
    vm_name: String,
    vm_status: String,
    vm_gone: bool,
}

record!(Turn { id, operation_type, plan_version, diff, vm_id, vm_name, vm_status, vm_gone });

impl Turn {
    fn plan(&self) -> Option<&'static Plan> {
        ops::find(&self.operation_type, u32::try_from(self.plan_version).unwrap_or(0))
    }

    fn status(&self) -> Result<VmStatus, Error> {
        stored(VmStatus::parse(&self.vm_status), "status", &self.vm_status)
    }
}

async fn turn_read(tx: &mut Tx, operation: i64) -> Result<Turn, Error> {
    sql::query(
        "SELECT o.id, o.operation_type, o.plan_version, o.diff, v.id AS vm_id, v.name AS vm_name,
            v.status AS vm_status, v.deleted_at IS NOT NULL AS vm_gone
         FROM operation o JOIN vm v ON v.id = o.resource_id WHERE o.id = $1",
    )
    .bind(operation)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}

/// It is an operation's turn: it takes its claims, or fails as its accept would fail now. Returns claims that became
/// free again.
async fn turn(tx: &mut Tx, operation: i64, ended: Option<i64>, now: Timestamp) -> Result<BTreeSet<Claim>, Error> {
    let turn = turn_read(tx, operation).await?;
    let status = turn.status()?;
    // A plan that this build does not know takes its claims and is parked by the worker.
    let plan = turn.plan();
    let refusal = if turn.vm_gone {
        Some(deleted_by(tx, ended).await?)
    } else {
        let leaving = vm_is_leaving(tx, turn.vm_id).await?;
        plan.and_then(|plan| plan.refusal(&format!("\"{}\"", turn.vm_name), status, leaving))
    };
    if let Some(failure) = refusal {
        return turn_end(tx, &turn, (Status::Failed, &failure), now).await;
    }
    let mut diff: Diff = from_json(&turn.diff)?;
    if let Some(plan) = plan {
        diff.remove("status");
        diff.extend(provisional(status.as_str(), plan).map(|entry| ("status".to_owned(), entry)));
        vm_set_status(tx, turn.vm_id, plan.accepted, now).await?;
    }
    sql::query("UPDATE operation_resource SET held = TRUE, waiting = FALSE WHERE operation_id = $1 AND waiting")
        .bind(turn.id)
        .execute(tx)
        .await
        .map_err(fault)?;
    sql::query("UPDATE operation SET status_claimed = $2, diff = $3, wake_at = $4, updated_at = $4 WHERE id = $1")
        .bind(turn.id)
        .bind(status.as_str())
        .bind(json(&diff)?)
        .bind(now.micros())
        .execute(tx)
        .await
        .map_err(fault)?;
    Ok(BTreeSet::new())
}

async fn deleted_by(tx: &mut Tx, operation: Option<i64>) -> Result<Failure, Error> {
    let uuid: Option<String> = sql::query("SELECT uuid FROM operation WHERE id = $1")
        .bind(operation)
        .fetch_optional(&mut **tx)
        .await
        .map_err(fault)?;
    let message = match uuid {
        Some(uuid) => format!("The VM was deleted by operation {uuid}."),
        None => "The VM was deleted.".to_owned(),
    };
    Ok(Failure { code: Code::CvmNotFound, message, internal: None })
}

/// Ends an operation that never began. Returns the claims that it waited for.
async fn turn_end(
    tx: &mut Tx,
    turn: &Turn,
    (status, failure): (Status, &Failure),
    now: Timestamp,
) -> Result<BTreeSet<Claim>, Error> {
    sql::query(
        "UPDATE operation SET status = $2, error_code = $3, error_message = $4, completed_at = $5, updated_at = $5
         WHERE id = $1",
    )
    .bind(turn.id)
    .bind(status.as_str())
    .bind(failure.code.id())
    .bind(&failure.message)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    let event = match turn.plan() {
        Some(plan) => plan.event("error"),
        None => format!("instance.{}.error", turn.operation_type),
    };
    event_append(tx, turn.id, NewEvent { event_type: &event, step: None, state: turn.status()? }, now).await?;
    claims_drop(tx, turn.id).await
}

/// Drops what an operation holds or waits for.
async fn claims_drop(tx: &mut Tx, operation: i64) -> Result<BTreeSet<Claim>, Error> {
    let dropped: Vec<Claim> = sql::query(
        "UPDATE operation_resource SET held = FALSE, waiting = FALSE WHERE operation_id = $1 AND (held OR waiting)
         RETURNING kind, resource_id",
    )
    .bind(operation)
    .fetch_all(&mut **tx)
    .await
    .map_err(fault)?;
    Ok(dropped.into_iter().collect())
}
