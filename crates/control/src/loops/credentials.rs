//! What credentials leave to be done later: when they were used last is written, and what is long over is forgotten.
//!
//! The one rule: no request waits for it, and a round that fails or never comes loses only how recent a use was.

use std::time::Duration;

use holdfast_store::api_keys::sessions_forget;
use tokio_util::sync::CancellationToken;

use crate::Control;

/// Between two rounds: one commit for all requests of this time.
const PAUSE: Duration = Duration::from_secs(20);
/// Sessions stay this long after their end, for whoever follows up on the audit log.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);
/// Rounds between two looks for old sessions.
const SELDOM: u32 = 180;

/// Runs until `stop`; then writes once more.
pub async fn run(control: Control, stop: CancellationToken) {
    for round in 0u32.. {
        if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            break;
        }
        write(&control).await;
        control.guard.tidy();
        if round % SELDOM == 0
            && let Err(error) = forget(&control).await
        {
            tracing::warn!(%error, "old sessions were not forgotten");
        }
    }
    write(&control).await;
}

async fn write(control: &Control) {
    if let Err(error) = control.uses_write().await {
        tracing::warn!(%error, "it was not written when credentials were used last");
    }
}

async fn forget(control: &Control) -> Result<(), holdfast_model::error::Error> {
    let mut tx = control.store.begin().await?;
    sessions_forget(&mut tx, KEEP, control.now()).await?;
    holdfast_store::commit(tx).await
}
