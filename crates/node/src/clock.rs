//! The only place of the node that reads the wall clock. The one rule: it dates what is shown to people; deadlines
//! and backoffs run on tokio's monotonic clock.

use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_model::Timestamp;

/// The host's idea of the time; the epoch itself when that clock is set before it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
