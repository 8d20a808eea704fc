//! The record of what left a database by age: a signed place on the chain, from which the database goes on.
//!
//! The one rule: only what a signed record names may be missing. Whoever cuts the beginning off by hand has no record
//! that says so, and cannot make one.

use crate::chain::{Hash, PublicKey, Record, SealKey};

/// What left with one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    pub first_position: i64,
    /// Everything up to here left, with this archive or one before it.
    pub last_position: i64,
    /// The chain before `first_position`.
    pub previous_hash: Hash,
    /// The chain after `last_position`.
    pub hash: Hash,
    /// Operations that were over before, in microseconds since 1970, UTC.
    pub over_before: i64,
    /// Positions above `last_position` that left too, ascending: later events of operations that began below it.
    pub ahead: Vec<i64>,
    /// Name of the file, without a folder.
    pub file: String,
    /// SHA-256 of the file's lines before its end, in hex.
    pub sha256: String,
    /// Microseconds since 1970, UTC.
    pub archived_at: i64,
    pub signature: [u8; 64],
}

impl Archive {
    /// What is signed.
    pub fn message(&self) -> Vec<u8> {
        let ahead: Vec<String> = self.ahead.iter().map(i64::to_string).collect();
        let mut record = Record::new(b"holdfast archive 1\n");
        record.integer("first_position", self.first_position);
        record.integer("last_position", self.last_position);
        record.field("previous_hash", Some(&hex::encode(self.previous_hash)));
        record.field("hash", Some(&hex::encode(self.hash)));
        record.integer("over_before", self.over_before);
        record.field("ahead", Some(&ahead.join(",")));
        record.field("file", Some(&self.file));
        record.field("sha256", Some(&self.sha256));
        record.integer("archived_at", self.archived_at);
        record.into_bytes()
    }

    pub fn sign(mut self, key: &SealKey) -> Self {
        self.signature = key.sign(&self.message());
        self
    }

    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verify(&self.message(), &self.signature)
    }

    /// True when the event at this position may be missing.
    pub fn covers(&self, position: i64) -> bool {
        position <= self.last_position || self.ahead.binary_search(&position).is_ok()
    }
}
