//! The sealer: takes committed events into the signed chain, in the order of their positions.
//!
//! The one rule: nobody waits for it. An operation is accepted and carried out whether or not its events are sealed; a
//! sealer that was killed, or that another one overtook, goes on where the chain ends.

use std::time::Duration;

use holdfast_store::chain::Sealing;
use tokio_util::sync::CancellationToken;

use crate::Control;

/// Events sealed at once.
const BATCH: i64 = 1000;
/// Between two rounds. Events that are committed meanwhile share a checkpoint, and one commit.
const PAUSE: Duration = Duration::from_millis(500);
/// After a database fault, before the next try.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

/// Runs until `stop`; then seals once more, so that a server that stopped leaves little behind.
pub async fn run(control: Control, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let pause = match round(&control).await {
            Ok(true) => continue,
            Ok(false) => PAUSE,
            Err(()) => FAULT_PAUSE,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
    let _ = round(&control).await;
}

/// True when there is more to seal.
async fn round(control: &Control) -> Result<bool, ()> {
    match control.store.events_seal(&control.keys.seal, BATCH, control.now()).await {
        Ok(Sealing::Nothing) => Ok(false),
        Ok(Sealing::Sealed(count)) => Ok(i64::try_from(count).is_ok_and(|count| count == BATCH)),
        Ok(Sealing::Lost) => Ok(true),
        Err(error) => {
            tracing::error!(%error, cause = error.internal, "events cannot be sealed");
            Err(())
        }
    }
}
