//! Operations while they run: claiming them by lease, and writing what the engine decided.
//!
//! The one rule: a worker writes only under the fencing token of its lease, and reads the world in the same transaction
//! that it writes in. A worker that lost its lease changes nothing; a report that arrives while it decides is either
//! seen by it or wakes the operation again.

use std::time::Duration;

use holdfast_engine::{Decision, Direction, Failure, Next, Observed, Plan, Record, World, ops};
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::node::VmReport;
use holdfast_model::operation::Status;
use holdfast_model::vm::{StopMode, VmStatus};

use crate::desired::{desired, desired_write};
use crate::nodes::column;
use crate::parking::parked_resume;
use crate::queue::{claims_end, queue_recover};
use crate::revisions::{change_of, revision_apply, revision_settle};
use crate::sql::{self, record};
use crate::vms::{vm_release, vm_set_status};
use crate::{Store, Tx, commit, fault, from_json, json, stored};

/// An operation that this worker holds.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub id: i64,
    pub uuid: String,
    pub operation_type: String,
    pub plan_version: i64,
    /// Fencing token.
    pub lease_token: i64,
    /// Claims since the last decision that was written, this one included.
    pub attempts: i64,
    created_at: i64,
}

record!(Claimed { id, uuid, operation_type, plan_version, lease_token, attempts, created_at });

impl Claimed {
    /// When the operation was accepted.
    pub fn created_at(&self) -> Timestamp {
        Timestamp(self.created_at)
    }
}

struct RecordRow {
    status: String,
    status_before: String,
    direction: String,
    step: i64,
    step_entered: bool,
    step_started_at: Option<i64>,
    deadline_at: Option<i64>,
    generation: i64,
    sub_operations: String,
    cancelled_by: Option<String>,
    error_code: Option<String>,
    error_message: Option<String>,
    error_internal: Option<String>,
    diff: String,
    request: String,
    vm_status: String,
    node_last_seen_at: i64,
    report: Option<String>,
    desired_generation: Option<i64>,
    run_state: Option<String>,
    boot_epoch: Option<i64>,
}

record!(RecordRow {
    status,
    status_before,
    direction,
    step,
    step_entered,
    step_started_at,
    deadline_at,
    generation,
    sub_operations,
    cancelled_by,
    error_code,
    error_message,
    error_internal,
    diff,
    request,
    vm_status,
    node_last_seen_at,
    report,
    desired_generation,
    run_state,
    boot_epoch,
});

/// The part of an operation's request that its execution needs.
#[derive(serde::Deserialize)]
struct Asked {
    /// How to stop the guest. An operation that does not say has none that runs, or destroys it.
    stop: Option<StopMode>,
}

impl Store {
    /// When the next operation is due, if any waits.
    pub fn operations_next_due(&self) -> Result<Option<Timestamp>, Error> {
        // What another worker holds is due when its lease is over.
        let due = sql::query(
            "SELECT MIN(CASE WHEN lease_until > wake_at THEN lease_until ELSE wake_at END) FROM operation
             WHERE wake_at IS NOT NULL",
        );
        Ok(self.read().here(|db| db.one::<Option<i64>>(&due))?.map(Timestamp))
    }

    /// A start of the only process there is: leases of the process before it are void, and no step times out for the
    /// time the server was away.
    pub async fn operations_recover(&self, grace: Duration, now: Timestamp) -> Result<u64, Error> {
        let mut tx = self.begin().await?;
        parked_resume(&mut tx, grace, now).await?;
        sql::query("UPDATE operation SET deadline_at = $1 WHERE deadline_at IS NOT NULL AND deadline_at < $1 AND wake_at IS NOT NULL")
            .bind(now.plus(grace).micros())
            .execute(&mut tx)
            .await
            .map_err(fault)?;
        queue_recover(&mut tx, now).await?;
        // What a node said to the server before is old; it is ready again when it says so to this one.
        sql::query("UPDATE node SET ready = FALSE, reason = 'it has not reported since the server started'")
            .execute(&mut tx)
            .await
            .map_err(fault)?;
        let woken = sql::query(
            "UPDATE operation SET lease_until = NULL, lease_owner = NULL, lease_token = lease_token + 1, wake_at = $1
             WHERE wake_at IS NOT NULL",
        )
        .bind(now.micros())
        .execute(&mut tx)
        .await
        .map_err(fault)?;
        commit(tx).await?;
        Ok(woken)
    }
}

/// What the engine needs of a claimed operation; `None` when the lease was lost.
pub async fn operation_load(
    tx: &mut Tx,
    claimed: &Claimed,
    node_patience: i64,
    now: Timestamp,
) -> Result<Option<(Record, World)>, Error> {
    let row: Option<RecordRow> = sql::query(
        "SELECT o.status, COALESCE(o.status_claimed, o.status_before) AS status_before,
                o.direction, o.step, o.step_entered, o.step_started_at,
                o.deadline_at, o.generation, o.sub_operations, o.cancelled_by, o.error_code, o.error_message,
                o.error_internal, o.diff, o.request, v.status AS vm_status, n.last_seen_at AS node_last_seen_at,
                s.report, d.generation AS desired_generation, d.run_state, d.boot_epoch
         FROM operation o JOIN vm v ON v.id = o.resource_id JOIN node n ON n.id = v.node_id
         LEFT JOIN vm_desired d ON d.vm_id = v.id LEFT JOIN vm_observed s ON s.vm_id = v.id
         WHERE o.id = $1 AND o.lease_token = $2",
    )
    .bind(claimed.id)
    .bind(claimed.lease_token)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    let Some(row) = row else { return Ok(None) };
    let failure = row.error_code.map(|code| Failure {
        code: Code::from_id(&code).unwrap_or(Code::Internal),
        message: row.error_message.unwrap_or_default(),
        internal: row.error_internal,
    });
    let record = Record {
        status: stored(Status::parse(&row.status), "operation status", &row.status)?,
        step: usize::try_from(row.step).map_err(Error::internal)?,
        direction: stored(Direction::parse(&row.direction), "direction", &row.direction)?,
        entered: row.step_entered,
        step_started_at: row.step_started_at.map(Timestamp),
        deadline_at: row.deadline_at.map(Timestamp),
        generation: row.generation.unsigned_abs(),
        sub_operations: from_json(&row.sub_operations)?,
        failure,
        cancelled_by: row.cancelled_by,
        status_before: stored(VmStatus::parse(&row.status_before), "status", &row.status_before)?,
        diff: from_json(&row.diff)?,
    };
    let revises = plan_of(claimed).is_some_and(Plan::revises);
    let report: Option<VmReport> = row.report.as_deref().map(from_json).transpose()?;
    let observed = report.map(|report| Observed {
        generation: report.generation,
        outcome: report.outcome,
        phase: report.phase,
        boot_epoch: report.boot_epoch,
        agent: report.agent,
        boot_progress: report.boot_progress,
        boot_error: report.boot_error,
        app_revision: report.app_revision,
        will_restart: report.will_restart,
        exit_reason: report.exit_reason,
    });
    let world = World {
        status: stored(VmStatus::parse(&row.vm_status), "status", &row.vm_status)?,
        desired: desired(row.desired_generation, row.run_state.as_deref(), row.boot_epoch)?,
        observed,
        node_online: row.node_last_seen_at >= now.micros() - node_patience,
        grace: grace(&row.request)?,
        change: if revises { change_of(tx, claimed.id).await? } else { None },
    };
    Ok(Some((record, world)))
}

/// Writes a decision and gives the lease back. False when the lease was lost; then nothing was written.
pub async fn operation_write(
    tx: &mut Tx,
    claimed: &Claimed,
    decision: &Decision,
    now: Timestamp,
) -> Result<bool, Error> {
    let record = &decision.record;
    let over = record.status.is_terminal();
    let wake_at = match decision.next {
        Next::At(at) => Some(at.micros()),
        Next::Never => None,
    };
    let failure = record.failure.as_ref();
    let row: Option<(i64, String, i64)> = sql::query(
        "UPDATE operation SET status = $3, direction = $4, step = $5, step_entered = $6, step_started_at = $7,
            deadline_at = $8, generation = $9, sub_operations = $10, error_code = $11, error_message = $12,
            error_internal = $13, diff = $14, wake_at = $15, lease_until = NULL, lease_owner = NULL, attempts = 0,
            started_at = COALESCE(started_at, $16), completed_at = $17, updated_at = $16
         WHERE id = $1 AND lease_token = $2 RETURNING resource_id, request,
            (SELECT COALESCE(MAX(seq), 0) FROM operation_event WHERE operation_id = $1)",
    )
    .bind(claimed.id)
    .bind(claimed.lease_token)
    .bind(record.status.as_str())
    .bind(record.direction.as_str())
    .bind(i64::try_from(record.step).map_err(Error::internal)?)
    .bind(record.entered)
    .bind(record.step_started_at.map(Timestamp::micros))
    .bind(record.deadline_at.map(Timestamp::micros))
    .bind(column(record.generation))
    .bind(json(&record.sub_operations)?)
    .bind(failure.map(|f| f.code.id()))
    .bind(failure.map(|f| &f.message))
    .bind(failure.and_then(|f| f.internal.as_ref()))
    .bind(json(&record.diff)?)
    .bind(wake_at)
    .bind(now.micros())
    .bind(over.then_some(now.micros()))
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    let Some((vm_id, request, last)) = row else { return Ok(false) };
    if let Some(direction) = decision.revise {
        revision_apply(tx, claimed.id, direction).await?;
    }
    if let Some(change) = &decision.desired {
        let asked: Asked = from_json(&request)?;
        desired_write(tx, vm_id, change, asked.stop.unwrap_or(StopMode::Hard), now).await?;
    }
    if let Some(status) = decision.status {
        vm_set_status(tx, vm_id, status, now).await?;
    }
    if decision.release {
        vm_release(tx, vm_id, now).await?;
    }
    let events: Vec<NewEvent<'_>> = decision
        .events
        .iter()
        .map(|e| NewEvent { event_type: &e.event_type, step: e.step.as_deref(), state: e.state })
        .collect();
    events_append(tx, claimed.id, last, &events, now).await?;
    if over {
        if plan_of(claimed).is_some_and(Plan::revises) {
            revision_settle(tx, vm_id).await?;
        }
        claims_end(tx, claimed.id, now).await?;
    }
    Ok(true)
}

/// What the request gives the guest to stop its app.
fn grace(request: &str) -> Result<Duration, Error> {
    let asked: Asked = from_json(request)?;
    Ok(match asked.stop {
        Some(StopMode::Graceful { grace_s } | StopMode::Asked { grace_s }) => Duration::from_secs(grace_s.into()),
        Some(StopMode::Hard) | None => Duration::ZERO,
    })
}

fn plan_of(claimed: &Claimed) -> Option<&'static Plan> {
    ops::find(&claimed.operation_type, u32::try_from(claimed.plan_version).unwrap_or(0))
}

/// An operation that this transaction accepted, for going on with it at once: nobody else can see it, so no lease is
/// needed.
pub async fn operation_accepted(tx: &mut Tx, operation: i64) -> Result<Claimed, Error> {
    sql::query(
        "SELECT id, uuid, operation_type, plan_version, lease_token, attempts, created_at FROM operation WHERE id = $1",
    )
    .bind(operation)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}

/// Gives the lease back without a decision; the operation is looked at again after `at`.
pub async fn operation_postpone(tx: &mut Tx, claimed: &Claimed, at: Timestamp) -> Result<(), Error> {
    sql::query(
        "UPDATE operation SET wake_at = $3, lease_until = NULL, lease_owner = NULL WHERE id = $1 AND lease_token = $2",
    )
    .bind(claimed.id)
    .bind(claimed.lease_token)
    .bind(at.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// An event to append, with the status that the resource has at that moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewEvent<'a> {
    pub event_type: &'a str,
    pub step: Option<&'a str>,
    pub state: VmStatus,
}

/// Appends an event to an operation that has some.
pub(crate) async fn event_append(
    tx: &mut Tx,
    operation: i64,
    event: NewEvent<'_>,
    now: Timestamp,
) -> Result<(), Error> {
    let last: i64 = sql::query("SELECT COALESCE(MAX(seq), 0) FROM operation_event WHERE operation_id = $1")
        .bind(operation)
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)?;
    events_append(tx, operation, last, &[event], now).await
}

/// Appends events with the numbers of their operation after `last`, and the next positions of all. However many there
/// are, they cost two statements.
pub(crate) async fn events_append(
    tx: &mut Tx,
    operation: i64,
    last: i64,
    events: &[NewEvent<'_>],
    now: Timestamp,
) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let mut query = sql::query("INSERT INTO operation_event (operation_id, seq, event_type, step, state, at) ");
    query.push_values((last + 1..).zip(events), |row, (seq, event)| {
        row.push_bind(operation)
            .push_bind(seq)
            .push_bind(event.event_type.to_owned())
            .push_bind(event.step.map(str::to_owned))
            .push_bind(event.state.as_str())
            .push_bind(now.micros());
    });
    query.execute(tx).await.map_err(fault)?;
    // One writer at a time: the next positions are free until this transaction ends. What left with an archive keeps its
    // positions: the checkpoint over them stays.
    sql::query(
        "INSERT INTO event_position (position, event_id)
         SELECT newest.position + e.seq - $2, e.id FROM operation_event e,
            (SELECT COALESCE(MAX(position), 0) AS position FROM (SELECT MAX(position) AS position FROM event_position
                UNION ALL SELECT MAX(last_position) FROM checkpoint) AS ends) AS newest
         WHERE e.operation_id = $1 AND e.seq > $2 ORDER BY e.seq",
    )
    .bind(operation)
    .bind(last)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}
