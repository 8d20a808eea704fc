//! The worker: claims operations that are due, lets the engine decide, writes the decision.
//!
//! The one rule: it holds no state. A decision is read, made and written in one transaction under the lease's token, so
//! killing the worker at any point loses nothing and a second worker repeats nothing.
//!
//! A fault is the business of the one operation that met it. One that passes (the disk is full, the database busy) is
//! tried again with growing waits. One that does not (a record that cannot be read, a plan that this build does not have)
//! parks the operation with a reason: trying again would not help, and a person can see it.

use std::time::Duration;

use futures_util::future::join_all;
use holdfast_engine::{decide, ops};
use holdfast_model::backoff::backoff;
use holdfast_model::error::{Code, Error};
use holdfast_model::operation::Status;
use holdfast_store::operations::{self, Claimed};
use holdfast_store::parking::{Parking, operation_park};
use tokio_util::sync::CancellationToken;

use crate::Control;

/// How long a claim holds without a word of its worker.
const LEASE: Duration = Duration::from_secs(10);
/// Operations claimed at once.
const BATCH: i64 = 64;
/// Looks for due operations at least this often, should a bell be missed.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// After a fault that passes, before the next try; doubled with each further one. Nobody tells us that there is room again,
/// and until we look everything waits, so the longest of them is not long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Runs until `stop`. Waiting operations do not hold it up.
pub async fn run(control: Control, owner: String, stop: CancellationToken) {
    let mut faults = 0;
    while !stop.is_cancelled() {
        match round(&control, &owner).await {
            Ok(pause) => {
                faults = 0;
                if pause.is_zero() {
                    continue;
                }
                tokio::select! {
                    () = control.work.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => {}
                }
            }
            Err(error) => {
                faults += 1;
                tracing::error!(%error, faults, "the worker cannot use the database");
                // News would not make the database any better.
                tokio::select! {
                    () = tokio::time::sleep(pause_after(faults)) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }
}

/// One claim and its decisions, if any operation is due. Returns how long none will be.
async fn round(control: &Control, owner: &str) -> Result<Duration, Error> {
    // Looking costs the writer nothing; a claim is a transaction of its own.
    let due = control.store.operations_next_due()?;
    let pause = due.map_or(LONGEST_SLEEP, |due| due.since(control.now()).min(LONGEST_SLEEP));
    if !pause.is_zero() {
        return Ok(pause);
    }
    let claimed = control.store.operations_claim(owner, LEASE, BATCH, control.now()).await?;
    // All at once: each is a transaction of its own, and those that queue share a commit.
    join_all(claimed.iter().map(async |operation| {
        if let Err(error) = advance(control, operation).await {
            failed(control, operation, &error).await;
        }
    }))
    .await;
    Ok(Duration::ZERO)
}

async fn advance(control: &Control, claimed: &Claimed) -> Result<(), Error> {
    let now = control.now();
    let version = u32::try_from(claimed.plan_version).unwrap_or(0);
    let plan = ops::find(&claimed.operation_type, version).ok_or_else(|| plan_unknown(claimed))?;
    let mut tx = control.store.begin().await?;
    let Some((record, world)) = operations::operation_load(&mut tx, claimed, control.node_patience(), now).await?
    else {
        tracing::warn!(operation = claimed.uuid, "lease lost; another worker has the operation");
        return Ok(());
    };
    let decision = decide(plan, &record, &world, &control.settings.deadlines, now);
    if !operations::operation_write(&mut tx, claimed, &decision, now).await? {
        return Ok(());
    }
    holdfast_store::commit(tx).await?;
    if decision.desired.is_some() {
        control.ring_desired();
    }
    if !decision.events.is_empty() {
        control.ring_events();
    }
    let status = decision.record.status;
    if status == record.status {
        return Ok(());
    }
    if status.is_terminal() {
        control.metrics.finished(plan, status, claimed.created_at(), now);
    }
    let failure = decision.record.failure.as_ref();
    let message = failure.map(|f| f.message.as_str());
    if status == Status::Stuck {
        let cause = failure.and_then(|f| f.internal.as_deref());
        tracing::error!(
            operation = claimed.uuid,
            kind = plan.name,
            message,
            cause,
            "operation stuck: it needs a person"
        );
    } else {
        tracing::info!(operation = claimed.uuid, kind = plan.name, status = status.as_str(), message, "operation");
    }
    Ok(())
}

fn plan_unknown(claimed: &Claimed) -> Error {
    let message = format!(
        "This operation was made by another version of the server: this one has no plan \"{}\" of version {}.",
        claimed.operation_type, claimed.plan_version
    );
    Error::new(Code::PlanUnknown, message)
}

/// An operation met a fault: it waits, or it is parked. Its transaction was dropped, so nothing of it happened.
async fn failed(control: &Control, claimed: &Claimed, error: &Error) {
    let passes = error.code == Code::Unavailable;
    control.metrics.fault(passes);
    let written = if passes {
        let pause = pause_after(u32::try_from(claimed.attempts).unwrap_or(u32::MAX));
        tracing::warn!(operation = claimed.uuid, %error, attempts = claimed.attempts, ?pause, "operation postponed");
        postpone(control, claimed, pause).await
    } else {
        tracing::error!(operation = claimed.uuid, kind = claimed.operation_type, %error, "operation parked: it needs a person");
        park(control, claimed, error).await
    };
    if let Err(error) = written {
        // The lease runs out, and then a worker comes back to it.
        tracing::error!(operation = claimed.uuid, %error, "an operation's fault cannot be written");
    }
}

async fn postpone(control: &Control, claimed: &Claimed, pause: Duration) -> Result<(), Error> {
    let mut tx = control.store.begin().await?;
    operations::operation_postpone(&mut tx, claimed, control.now().plus(pause)).await?;
    holdfast_store::commit(tx).await
}

async fn park(control: &Control, claimed: &Claimed, error: &Error) -> Result<(), Error> {
    let parking = match error.code {
        Code::PlanUnknown => Parking { code: error.code, message: &error.message, internal: None },
        _ => Parking {
            code: Code::OperationUnreadable,
            message: "The server cannot carry this operation out because of a fault of its own.",
            internal: Some(error.internal.as_deref().unwrap_or(&error.message)),
        },
    };
    let mut tx = control.store.begin().await?;
    operation_park(&mut tx, claimed, parking, control.now()).await?;
    holdfast_store::commit(tx).await?;
    control.ring_events();
    Ok(())
}

fn pause_after(failures: u32) -> Duration {
    backoff(FIRST_PAUSE, LONGEST_PAUSE, failures, rand::random())
}
