//! Exported operations: lines of JSON that prove themselves. The format is written down in `docs/audit.md`.
//!
//! The one rule: the rows speak for themselves, then the file does. Each exported event is compared with the leaf that its
//! signed checkpoint covers, so an altered or removed row is named; the signature at the end is over the whole file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chain::{ACCEPTED, Checkpoint, EVENT, Entry, Hash, PublicKey, SealKey, Value, link};
use crate::walk::Problem;

/// The format's number.
pub const FORMAT: u32 = 1;

/// One line of an export: a header, operations, audited requests, the checkpoints over the events, and an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    Header(Header),
    Operation(Operation),
    /// Of an archive: a row of the audit log, its values as text. The chain does not bind it; the file's signature does.
    Audit(BTreeMap<String, Value>),
    Checkpoint(Batch),
    End(End),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub format: u32,
    pub public_key: String,
    /// Operations accepted at or after, in microseconds since 1970.
    pub since: Option<i64>,
    /// Operations accepted before.
    pub until: Option<i64>,
    pub exported_at: i64,
    /// It is an archive, and holds everything of these positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Span>,
    /// Older operations left the database before it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<Older>,
}

/// The part of the chain that an archive holds whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub first_position: i64,
    pub last_position: i64,
    /// The chain before `first_position`, in hex: where the archive before it ends.
    pub previous_hash: String,
    /// The chain after `last_position`, in hex.
    pub hash: String,
    /// Operations that were over before, in microseconds since 1970.
    pub over_before: i64,
    /// Positions whose events are in an archive before this one, because their operation began there.
    pub elsewhere: Vec<i64>,
}

/// Where an export's older operations are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Older {
    /// Events up to this position left.
    pub last_position: i64,
    /// Operations that were over before, in microseconds since 1970.
    pub over_before: i64,
    /// Name of the newest archive.
    pub file: String,
}

/// An operation with all its events. Values are the text that leaves bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    pub id: String,
    /// Columns of [`ACCEPTED`].
    pub accepted: BTreeMap<String, Value>,
    /// Columns of [`OUTCOME`](crate::chain::OUTCOME), as they were at the export.
    pub outcome: BTreeMap<String, Value>,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub position: i64,
    pub seq: i64,
    pub event_type: Value,
    pub step: Value,
    pub state: Value,
    pub at: Value,
}

/// A checkpoint and the leaf of every position that it covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    pub first_position: i64,
    pub last_position: i64,
    pub previous_hash: String,
    pub hash: String,
    pub sealed_at: i64,
    pub signature: String,
    pub leaves: Vec<Leaf>,
}

/// A leaf, with the operation and number that it was sealed for when that operation is in the export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Leaf {
    Exported(String, String, i64),
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub operations: u64,
    pub events: u64,
    /// SHA-256 of every byte before this line.
    pub sha256: String,
    pub signature: String,
}

impl End {
    pub fn sign(operations: u64, events: u64, digest: &Hash, key: &SealKey) -> Self {
        let signature = hex::encode(key.sign(&message(operations, events, digest)));
        Self { operations, events, sha256: hex::encode(digest), signature }
    }
}

fn message(operations: u64, events: u64, digest: &Hash) -> Vec<u8> {
    format!("holdfast export {FORMAT}\n{operations} {events} {}", hex::encode(digest)).into_bytes()
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    pub problem: Option<Problem>,
    pub operations: u64,
    /// Events under a checkpoint that agree with it.
    pub sealed: u64,
    /// Events that were not sealed when they were exported.
    pub unsealed: u64,
    pub checkpoints: u64,
    /// Audited requests.
    pub audit: u64,
    pub head: Option<Head>,
    pub public_key: String,
    pub archive: Option<Span>,
    pub older: Option<Older>,
    /// Of every line before the end, in hex.
    pub sha256: String,
    /// The chain went through the place that was asked for, with that hash.
    pub known_seen: bool,
}

/// The newest checkpoint of an export; of an archive, the one that it ends at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub position: i64,
    /// In hex.
    pub hash: String,
    pub sealed_at: i64,
}

/// Reads an export line by line.
pub struct Check {
    given: Option<PublicKey>,
    key: Option<PublicKey>,
    /// A position, and the hash in hex that the chain must have there.
    known: Option<(i64, String)>,
    digest: Sha256,
    /// What the rows say: position, to leaf, operation and number.
    rows: BTreeMap<i64, (Hash, String, i64)>,
    events: u64,
    /// Last position and hash of the newest batch.
    reached: Option<(i64, String)>,
    ended: bool,
    out: Findings,
}

impl Check {
    /// `key`: what to check signatures with, instead of the key that the file names.
    pub fn new(key: Option<PublicKey>) -> Self {
        Self {
            given: key,
            key: None,
            known: None,
            digest: Sha256::new(),
            rows: BTreeMap::new(),
            events: 0,
            reached: None,
            ended: false,
            out: Findings::default(),
        }
    }

    /// The chain must have this hash, in hex, at this position, if the position is covered.
    pub fn known(mut self, known: Option<(i64, String)>) -> Self {
        self.known = known;
        self
    }

    /// Takes one line with its line break. Stops at the first problem.
    pub fn line(&mut self, text: &str) {
        if self.out.problem.is_some() {
            return;
        }
        let line = serde_json::from_str(text).map_err(|_| whole("a line is not what an export has"));
        let result = line.and_then(|line| match line {
            _ if self.ended => Err(whole("there is something after its end")),
            Line::Header(header) => self.header(header),
            Line::Operation(operation) => self.operation(&operation),
            Line::Audit(_) => {
                self.out.audit += 1;
                Ok(())
            }
            Line::Checkpoint(batch) => self.batch(&batch),
            Line::End(end) => self.end(&end),
        });
        self.digest.update(text.as_bytes());
        self.out.problem = result.err();
    }

    /// After the last line.
    pub fn finish(mut self) -> Findings {
        if self.out.problem.is_none() && !self.ended {
            self.out.problem = Some(whole("it is cut short: its end is missing"));
        }
        if self.out.problem.is_none() {
            self.out.problem = self.archive_end().err();
        }
        self.out.unsealed = self.rows.len() as u64;
        self.out
    }

    /// An archive goes to where it says, and has nothing besides.
    fn archive_end(&self) -> Result<(), Problem> {
        let Some(span) = &self.out.archive else { return Ok(()) };
        let reached = self.out.head.as_ref().map_or(span.first_position - 1, |head| head.position);
        if reached != span.last_position {
            return Err(Problem::at(reached + 1, "the checkpoint that begins here was removed"));
        }
        match self.rows.iter().next() {
            Some((position, (_, operation, seq))) => Err(Problem {
                position: Some(*position),
                ..Problem::of(operation, Some(*seq), "inserted: this event is under no checkpoint")
            }),
            None => Ok(()),
        }
    }

    fn header(&mut self, header: Header) -> Result<(), Problem> {
        if self.key.is_some() || header.format != FORMAT {
            return Err(whole("it is not of a format that this version knows"));
        }
        let key = self.given.or_else(|| PublicKey::parse(&header.public_key).ok());
        let key = key.ok_or_else(|| whole("it names no public key"))?;
        self.out.public_key = key.to_hex();
        self.key = Some(key);
        self.out.archive = header.archive;
        self.out.older = header.older;
        Ok(())
    }

    fn operation(&mut self, operation: &Operation) -> Result<(), Problem> {
        let of = |seq: Option<i64>, what: &str| Problem::of(&operation.id, seq, what);
        let outcome_columns = crate::chain::OUTCOME;
        let accepted = values(&operation.accepted, &ACCEPTED);
        let outcome = values(&operation.outcome, &outcome_columns);
        let (Some(accepted), Some(outcome)) = (accepted, outcome) else {
            return Err(of(None, "altered: its columns are not those that are bound"));
        };
        let status = operation.outcome.get("status").and_then(|s| s.as_deref());
        let over = matches!(status, Some("done" | "failed" | "cancelled"));
        if operation.events.is_empty() {
            return Err(of(Some(1), "the event was removed"));
        }
        for (number, event) in (1..).zip(&operation.events) {
            let last = over && number == operation.events.len() as i64;
            let entry = Entry {
                position: event.position,
                operation: operation.id.clone(),
                seq: event.seq,
                event: EVENT
                    .iter()
                    .map(|name| match *name {
                        "event_type" => event.event_type.clone(),
                        "step" => event.step.clone(),
                        "state" => event.state.clone(),
                        _ => event.at.clone(),
                    })
                    .collect(),
                accepted: (event.seq == 1).then(|| accepted.clone()),
                outcome: last.then(|| outcome.clone()),
            };
            let row = (entry.leaf(), operation.id.clone(), event.seq);
            if self.rows.insert(event.position, row).is_some() {
                return Err(of(Some(event.seq), "reordered: another event has the same position"));
            }
            self.events += 1;
        }
        self.out.operations += 1;
        Ok(())
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), Problem> {
        let key = self.key.ok_or_else(|| whole("its header is missing"))?;
        let first = batch.first_position;
        let damaged = || Problem::at(first, "the checkpoint that begins here was altered");
        let checkpoint = Checkpoint {
            first_position: first,
            last_position: batch.last_position,
            previous_hash: bytes(&batch.previous_hash).ok_or_else(damaged)?,
            hash: bytes(&batch.hash).ok_or_else(damaged)?,
            sealed_at: batch.sealed_at,
            signature: bytes(&batch.signature).ok_or_else(damaged)?,
        };
        if !checkpoint.is_signed_by(&key) {
            return Err(Problem::at(first, "the signature of the checkpoint that begins here is not valid"));
        }
        self.follows(batch)?;
        let mut hash = checkpoint.previous_hash;
        let mut position = first;
        for leaf in &batch.leaves {
            let (text, sealed) = match leaf {
                Leaf::Exported(text, operation, seq) => (text, Some((operation, *seq))),
                Leaf::Other(text) => (text, None),
            };
            let leaf: Hash = bytes(text).ok_or_else(|| Problem::at(position, "the seal of this event was altered"))?;
            self.compare(position, &leaf, sealed)?;
            hash = link(&hash, &leaf);
            if let Some((_, known)) = self.known.as_ref().filter(|(at, _)| *at == position) {
                if *known != hex::encode(hash) {
                    return Err(Problem::at(position, format!("the chain is another one: its hash here was {known}")));
                }
                self.out.known_seen = true;
            }
            position += 1;
        }
        if position != batch.last_position + 1 || hash != checkpoint.hash {
            let what =
                format!("altered: a row of positions {first} to {} was changed with its seal", batch.last_position);
            return Err(Problem::at(first, what));
        }
        self.reached = Some((batch.last_position, batch.hash.clone()));
        if self.out.archive.as_ref().is_none_or(|span| batch.last_position <= span.last_position) {
            self.out.head =
                Some(Head { position: batch.last_position, hash: batch.hash.clone(), sealed_at: batch.sealed_at });
        }
        self.out.checkpoints += 1;
        Ok(())
    }

    /// A batch goes on where the one before it ended. Only an archive has all of them, from its beginning to its end.
    fn follows(&self, batch: &Batch) -> Result<(), Problem> {
        let first = batch.first_position;
        let unconnected = || Problem::at(first, "the checkpoint does not continue the one before it");
        if let Some((last, hash)) = &self.reached
            && (first <= *last || (first == last + 1 && *hash != batch.previous_hash))
        {
            return Err(unconnected());
        }
        let Some(span) = self.out.archive.as_ref().filter(|span| first <= span.last_position) else { return Ok(()) };
        let expected = self.reached.as_ref().map_or(span.first_position, |(last, _)| last + 1);
        if first != expected {
            return Err(Problem::at(expected, "the checkpoint that begins here was removed"));
        }
        if (first == span.first_position && batch.previous_hash != span.previous_hash)
            || (batch.last_position == span.last_position && batch.hash != span.hash)
        {
            return Err(unconnected());
        }
        Ok(())
    }

    fn compare(&mut self, position: i64, leaf: &Hash, sealed: Option<(&String, i64)>) -> Result<(), Problem> {
        let problem = |operation: &str, seq: i64, what: &str| Problem {
            position: Some(position),
            ..Problem::of(operation, Some(seq), what)
        };
        match (self.rows.remove(&position), sealed) {
            (None, None) if self.is_missing(position) => {
                Err(Problem::at(position, "the event or its operation was removed"))
            }
            (None, None) => Ok(()),
            (None, Some((operation, seq))) => Err(problem(operation, seq, "the event or its operation was removed")),
            (Some((row, operation, seq)), sealed) => {
                if row == *leaf {
                    self.out.sealed += 1;
                    return Ok(());
                }
                match sealed {
                    Some((was, number)) if (was, number) != (&operation, seq) => {
                        let what = format!("reordered: event {seq} of operation {operation} stands in its place");
                        Err(problem(was, number, &what))
                    }
                    _ => Err(problem(&operation, seq, "altered: this event, or its operation")),
                }
            }
        }
    }

    /// True for a position that an archive says it holds.
    fn is_missing(&self, position: i64) -> bool {
        self.out.archive.as_ref().is_some_and(|span| {
            (span.first_position..=span.last_position).contains(&position) && !span.elsewhere.contains(&position)
        })
    }

    fn end(&mut self, end: &End) -> Result<(), Problem> {
        self.ended = true;
        let key = self.key.ok_or_else(|| whole("its header is missing"))?;
        let digest: Hash = self.digest.clone().finalize().into();
        let signature = bytes(&end.signature).ok_or_else(|| whole("its signature was altered"))?;
        let signed = key.verify(&message(end.operations, end.events, &digest), &signature);
        let digest_said = end.sha256 == hex::encode(digest);
        if !signed || !digest_said || (end.operations, end.events) != (self.out.operations, self.events) {
            return Err(whole("it was changed after it was written"));
        }
        self.out.sha256 = end.sha256.clone();
        Ok(())
    }
}

/// A problem of the file as a whole.
fn whole(what: &str) -> Problem {
    Problem { position: None, operation: None, seq: None, what: format!("the export: {what}") }
}

/// The values of these columns, in order. `None` when the columns are others.
fn values(map: &BTreeMap<String, Value>, names: &[&str]) -> Option<Vec<Value>> {
    let values: Option<Vec<Value>> = names.iter().map(|name| map.get(*name).cloned()).collect();
    values.filter(|values| values.len() == map.len())
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
