//! The node process: it dials in to a server, learns which VMs should exist, makes it so, and reports what is.
//!
//! The one rule: the disk is the truth. Everything that must outlive this process (what is wanted of each VM, which
//! process runs it) is written before it is acted on, so a node that was killed at any point goes on from the files
//! alone, without its server, and never starts a VM twice.
//!
//! ```text
//!   server  <-- register, desired, report --  session  --> fleet --> one task per VM (vm) --> reconcile (pure)
//!           <-- stream (WebSocket) ---------  stream                     |
//!                                                                        +--> record (files)
//!                                                                        +--> hypervisor (qemu | simulated)
//! ```

mod clock;
mod config;
mod fleet;
pub mod host;
pub mod hypervisor;
pub mod image;
pub mod reconcile;
pub mod record;
mod reports;
mod server;
mod session;
mod stream;
mod vm;

pub use config::{HypervisorKind, NodeConfig};
pub use session::run;

/// Why a node cannot run at all. Anything that may pass by itself is retried instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another node process uses {0}")]
    Locked(std::path::PathBuf),
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("the server's address {0:?} is not an http or https URL")]
    BadServerUrl(String),
    #[error("HTTP client: {0}")]
    Http(String),
    #[error("{0}")]
    Config(String),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<std::path::PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
