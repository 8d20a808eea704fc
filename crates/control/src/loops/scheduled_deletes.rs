//! Scheduled deletes: CVMs whose time has come get their delete operation.
//!
//! The one rule: the time is in the database and nowhere else. A server that was not running at that time makes up for it
//! when it starts.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Control;

/// CVMs looked at in one round.
const BATCH: i64 = 100;
/// Between two looks: how late a delete may begin.
const PAUSE: Duration = Duration::from_secs(1);
/// After a database fault, before the next try.
const FAULT_PAUSE: Duration = Duration::from_secs(5);

/// Runs until `stop`.
pub async fn run(control: Control, stop: CancellationToken) {
    loop {
        let pause = match stop.run_until_cancelled(control.scheduled_deletes(BATCH)).await {
            None => return,
            Some(Ok(0)) => PAUSE,
            Some(Ok(_)) => continue,
            Some(Err(error)) => {
                tracing::error!(%error, cause = error.internal, "scheduled deletes cannot be accepted");
                FAULT_PAUSE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}
