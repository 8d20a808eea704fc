//! The worker: claims operations that are due, lets the engine decide, writes the decision.
//!
//! The one rule: it holds no state. A decision is read, made and written in one transaction under the lease's token, so
//! killing the worker at any point loses nothing and a second worker repeats nothing.

use std::time::Duration;

use holdfast_engine::{decide, ops};
use holdfast_model::error::Error;
use holdfast_store::operations::{self, Claimed};
use tokio_util::sync::CancellationToken;

use crate::Control;

/// How long a claim holds without a word of its worker.
const LEASE: Duration = Duration::from_secs(10);
/// Operations claimed at once.
const BATCH: i64 = 64;
/// Looks for due operations at least this often, should a bell be missed.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// After a database fault, before the next try.
const FAULT_PAUSE: Duration = Duration::from_millis(500);

/// Runs until `stop`. Waiting operations do not hold it up.
pub async fn run(control: Control, owner: String, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let pause = match round(&control, &owner).await {
            Ok(0) => next_due(&control).await,
            Ok(_) => continue,
            Err(error) => {
                tracing::error!(%error, "the worker cannot use the database");
                FAULT_PAUSE
            }
        };
        tokio::select! {
            () = control.work.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// One claim and its decisions. Returns how many operations it moved.
async fn round(control: &Control, owner: &str) -> Result<usize, Error> {
    let claimed = control.store.operations_claim(owner, LEASE, BATCH, control.now()).await?;
    for operation in &claimed {
        advance(control, operation).await?;
    }
    Ok(claimed.len())
}

async fn advance(control: &Control, claimed: &Claimed) -> Result<(), Error> {
    let now = control.now();
    let mut tx = control.store.begin().await?;
    let version = u32::try_from(claimed.plan_version).unwrap_or(0);
    let Some(plan) = ops::find(&claimed.operation_type, version) else {
        let reason = format!("this build has no plan {} version {version}", claimed.operation_type);
        tracing::error!(operation = claimed.uuid, reason, "operation parked");
        operations::operation_park(&mut tx, claimed, &reason, now).await?;
        return holdfast_store::commit(tx).await;
    };
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
    if decision.record.status != record.status {
        let failure = decision.record.failure.as_ref().map(|f| f.message.as_str());
        tracing::info!(
            operation = claimed.uuid,
            kind = plan.name,
            status = decision.record.status.as_str(),
            failure,
            "operation"
        );
    }
    Ok(())
}

async fn next_due(control: &Control) -> Duration {
    match control.store.operations_next_due().await {
        Ok(Some(due)) => due.since(control.now()).min(LONGEST_SLEEP),
        _ => LONGEST_SLEEP,
    }
}
