//! The words everything else is written in: ids, resources, operations, statuses, error codes, and the
//! wire types of node and guest.
//!
//! The one rule: no I/O and no clock. Whatever is here can be used inside the seeded simulator, inside
//! the guest and inside the server alike.

pub mod access;
pub mod backoff;
pub mod compose;
pub mod error;
pub mod guest;
pub mod hashid;
pub mod image;
pub mod limits;
pub mod node;
pub mod operation;
pub mod preview;
pub mod time;
pub mod vm;

pub use error::{Code, Error};
pub use time::Timestamp;

/// Version of this build, as shown by `--version`, `/healthz` and on every node.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
