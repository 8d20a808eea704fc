//! The chain over committed events, and the signed checkpoints on it. The format is written down in `docs/audit.md`.
//!
//! The one rule: what is hashed is named. Every value goes in with the name of its column and its length, so no two
//! different records have the same bytes, and a change of this list is a change of the format's number.
//!
//! ```text
//! leaf  n = SHA-256("holdfast event 1\n" || fields of event n)
//! hash  n = SHA-256("holdfast link 1\n"  || hash n-1 || leaf n)        hash 0 is 32 zero bytes
//! checkpoint: Ed25519("holdfast checkpoint 1\n" || fields of the checkpoint)
//! field = length of name (4 bytes) || name || 0                           no value
//!       | length of name (4 bytes) || name || 1 || length (8 bytes) || value in UTF-8, numbers in decimal
//! ```

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// A SHA-256 digest.
pub type Hash = [u8; 32];
/// Text of a column, or null.
pub type Value = Option<String>;

/// Before the first event.
pub const ORIGIN: Hash = [0; 32];

/// Columns of `operation_event` that each leaf binds, besides position, operation and number.
pub const EVENT: [&str; 4] = ["event_type", "step", "state", "at"];

/// Columns of `operation` that are written when it is accepted and never again: its first event binds them.
pub const ACCEPTED: [&str; 23] = [
    "workspace_id",
    "project_id",
    "kind",
    "verb",
    "operation_type",
    "plan_version",
    "target_state",
    "resource_id",
    "resource_uuid",
    "resource_name",
    "compose_hash",
    "user_id",
    "username",
    "email",
    "api_key_id",
    "client_address",
    "request_id",
    "trace_id",
    "request",
    "diff_accepted",
    "status_before",
    "retry_of",
    "created_at",
];

/// Columns of `operation` that change until it is over: the last event of one that is over binds them.
pub const OUTCOME: [&str; 17] = [
    "diff",
    "status",
    "direction",
    "step",
    "step_entered",
    "step_started_at",
    "deadline_at",
    "generation",
    "sub_operations",
    "cancel_requested_at",
    "cancelled_by",
    "error_code",
    "error_message",
    "error_internal",
    "started_at",
    "completed_at",
    "updated_at",
];

/// An event with everything that it binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub position: i64,
    /// UUID of the operation.
    pub operation: String,
    /// Number of the event within the operation.
    pub seq: i64,
    /// Values of [`EVENT`].
    pub event: Vec<Value>,
    /// Values of [`ACCEPTED`], on the first event.
    pub accepted: Option<Vec<Value>>,
    /// Values of [`OUTCOME`], on the last event of an operation that is over.
    pub outcome: Option<Vec<Value>>,
}

impl Entry {
    pub fn leaf(&self) -> Hash {
        let mut hash = Record::new(b"holdfast event 1\n");
        hash.integer("position", self.position);
        hash.field("operation", Some(&self.operation));
        hash.integer("seq", self.seq);
        hash.columns("", &EVENT, &self.event);
        if let Some(values) = &self.accepted {
            hash.columns("accepted.", &ACCEPTED, values);
        }
        if let Some(values) = &self.outcome {
            hash.columns("outcome.", &OUTCOME, values);
        }
        Sha256::digest(hash.0).into()
    }
}

/// The hash of the chain after one more event.
pub fn link(previous: &Hash, leaf: &Hash) -> Hash {
    Sha256::new().chain_update(b"holdfast link 1\n").chain_update(previous).chain_update(leaf).finalize().into()
}

/// What a batch of events was sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub first_position: i64,
    pub last_position: i64,
    /// The chain before `first_position`.
    pub previous_hash: Hash,
    /// The chain after `last_position`.
    pub hash: Hash,
    /// Microseconds since 1970, UTC.
    pub sealed_at: i64,
    pub signature: [u8; 64],
}

impl Checkpoint {
    /// What is signed.
    pub fn message(&self) -> Vec<u8> {
        let mut record = Record::new(b"holdfast checkpoint 1\n");
        record.integer("first_position", self.first_position);
        record.integer("last_position", self.last_position);
        record.field("previous_hash", Some(&hex::encode(self.previous_hash)));
        record.field("hash", Some(&hex::encode(self.hash)));
        record.integer("sealed_at", self.sealed_at);
        record.into_bytes()
    }

    pub fn sign(mut self, key: &SealKey) -> Self {
        self.signature = key.sign(&self.message());
        self
    }

    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verify(&self.message(), &self.signature)
    }
}

/// Signs checkpoints. Made from a secret of the installation.
pub struct SealKey(SigningKey);

impl SealKey {
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// What an auditor needs: 32 bytes, written in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// The text is no Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 64 hex digits of an Ed25519 key")]
pub struct NotAPublicKey;

impl PublicKey {
    pub fn parse(text: &str) -> Result<Self, NotAPublicKey> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| NotAPublicKey)?;
        VerifyingKey::from_bytes(&bytes).map(Self).map_err(|_| NotAPublicKey)
    }

    pub fn to_hex(&self) -> String {
        hex::encode(self.0.as_bytes())
    }

    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

/// Named values, one after the other.
pub(crate) struct Record(Vec<u8>);

impl Record {
    pub(crate) fn new(domain: &[u8]) -> Self {
        Self(domain.to_vec())
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn field(&mut self, name: &str, value: Option<&str>) {
        self.0.extend((name.len() as u32).to_be_bytes());
        self.0.extend(name.as_bytes());
        match value {
            None => self.0.push(0),
            Some(value) => {
                self.0.push(1);
                self.0.extend((value.len() as u64).to_be_bytes());
                self.0.extend(value.as_bytes());
            }
        }
    }

    pub(crate) fn integer(&mut self, name: &str, value: i64) {
        self.field(name, Some(&value.to_string()));
    }

    /// A column without a value is null, whether it was read so or not at all.
    fn columns(&mut self, section: &str, names: &[&str], values: &[Value]) {
        for (index, name) in names.iter().enumerate() {
            self.field(&format!("{section}{name}"), values.get(index).and_then(|v| v.as_deref()));
        }
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
