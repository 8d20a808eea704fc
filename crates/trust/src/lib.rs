//! Keys and secrets: derivation of app keys, encryption of env values, wrapped secrets of the installation, signed tokens,
//! the chain over events.
//!
//! The one rule: no I/O. Whoever calls decides where a secret lies and for how long; what this crate holds itself is wiped
//! when dropped, and no `Debug` output shows it.

#![forbid(unsafe_code)]

pub mod address;
pub mod archive;
pub mod chain;
pub mod env;
pub mod export;
pub mod kms;
pub mod token;
pub mod walk;
pub mod wrap;

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no random bytes from the operating system")]
pub struct NoEntropy;

/// Fresh bytes from the operating system's generator.
pub fn random<const N: usize>() -> Result<[u8; N], NoEntropy> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| NoEntropy)?;
    Ok(bytes)
}
