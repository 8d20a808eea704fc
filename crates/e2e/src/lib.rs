//! What the end-to-end tests share: a cloud of their own, the official command line, and a look for leftovers.
//!
//! The one rule: a test ends with nothing of it left on the machine, passed or failed.

#![forbid(unsafe_code)]

pub mod cli;
pub mod cloud;
pub mod github;
pub mod identity;
pub mod leftovers;
pub mod sdk;
pub mod small;
pub mod truth;

use std::path::PathBuf;

/// The binary under test: `HOLDFAST_BIN`, or the release build.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("HOLDFAST_BIN").map_or_else(|| root().join("target/release/holdfast"), PathBuf::from);
    assert!(path.is_file(), "there is no {}; run `cargo xtask test simulated`, which builds it", path.display());
    path
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the source tree is there")
}

/// The sample app.
pub fn hello_compose() -> PathBuf {
    root().join("examples/hello/docker-compose.yml")
}
