//! Ctrl-C as a flag.
//!
//! The one rule: after [`catch`] the first Ctrl-C is a wish that the running command honours; a second one ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub struct Interrupt(Arc<AtomicBool>);

pub fn catch() -> Result<Interrupt> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())?;
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(Interrupt(flag))
}

impl Interrupt {
    pub fn wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
