//! Operations as data, and the pure function that moves one forward.
//!
//! An operation is a [`Plan`]: named steps, each with a deadline and maybe an undo, and a *pivot*. Before the pivot a
//! failure or a cancel undoes every step that ran; after it the plan goes forward, or the resource ends in `error` with
//! its disk and logs kept.
//!
//! The one rule: [`decide`] does no I/O and reads no clock. It is given the record, what is known of the world and the
//! time, and returns what to write. Whoever calls it writes all of that in one transaction, under the lease's fencing
//! token, or nothing. So a crash between two calls loses nothing and repeats nothing, and every state can be tested
//! without a database.
//!
//! ```text
//!            +-------------------- forward -------------------+
//!  pending ->| step 0 -> step 1 -> ... pivot ... -> step n-1  |-> done
//!            +----|---------|----------------------|----------+
//!      failed or  |         |                      | failed
//!      cancelled  v         v                      v
//!            +---- undo, backwards ---+         failed, resource in `error`
//!            | undo 1 -> undo 0       |-> failed | cancelled
//!            +------------|-----------+
//!                         | refused by the node
//!                         v
//!                       stuck
//! ```

#![forbid(unsafe_code)]

mod decide;
mod observe;
pub mod ops;
mod plan;
mod record;
pub mod revision;

pub use decide::decide;
pub use observe::status_of;
pub use plan::{Action, Deadline, Deadlines, PARK, Plan, Step, Undo, Until, Want};
pub use record::{Decision, Desired, DesiredChange, Direction, EventOut, Failure, Next, Observed, Record, World};
