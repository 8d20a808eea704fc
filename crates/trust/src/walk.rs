//! Following the chain: are these rows the ones that were sealed?
//!
//! The one rule: the answer names a row. The first position where record and seal part is said with the operation and the
//! event that were sealed there, not just "the chain is broken".

use crate::chain::{Checkpoint, Entry, Hash, ORIGIN, PublicKey, link};

/// What was noted of an event when it was sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    pub position: i64,
    pub operation: String,
    pub seq: i64,
    pub leaf: Hash,
}

/// The first thing that is not as it was sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub position: Option<i64>,
    /// UUID of the operation.
    pub operation: Option<String>,
    /// Number of the event within the operation.
    pub seq: Option<i64>,
    pub what: String,
}

impl Problem {
    pub fn at(position: i64, what: impl Into<String>) -> Self {
        Self { position: Some(position), operation: None, seq: None, what: what.into() }
    }

    pub fn of(operation: &str, seq: Option<i64>, what: impl Into<String>) -> Self {
        Self { position: None, operation: Some(operation.to_owned()), seq, what: what.into() }
    }

    fn sealed(seal: &Seal, what: impl Into<String>) -> Self {
        Self {
            position: Some(seal.position),
            operation: Some(seal.operation.clone()),
            seq: Some(seal.seq),
            what: what.into(),
        }
    }
}

/// Compares a row with its seal. `None`: the row is not there.
pub fn compare(seal: &Seal, entry: Option<&Entry>) -> Result<(), Problem> {
    let Some(entry) = entry else {
        return Err(Problem::sealed(seal, "the event or its operation was removed"));
    };
    if (entry.operation.as_str(), entry.seq) != (seal.operation.as_str(), seal.seq) {
        let what = format!("reordered: event {} of operation {} stands in its place", entry.seq, entry.operation);
        return Err(Problem::sealed(seal, what));
    }
    if entry.leaf() == seal.leaf {
        return Ok(());
    }
    let what = match (&entry.accepted, &entry.outcome) {
        (None, None) => "altered: this event, or what follows it in its operation",
        (Some(_), None) => "altered: this event, or the operation's actor, request or accepted diff",
        (None, Some(_)) => "altered: this event, or the operation's status, error, diff or times",
        (Some(_), Some(_)) => "altered: this event, or its operation",
    };
    Err(Problem::sealed(seal, what))
}

/// A place on the chain, moving forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    key: PublicKey,
    /// The last position that was followed.
    pub position: i64,
    pub hash: Hash,
}

impl Walk {
    /// At the beginning of the chain.
    pub fn new(key: PublicKey) -> Self {
        Self { key, position: 0, hash: ORIGIN }
    }

    /// At a place that a signed record vouches for.
    pub fn from(key: PublicKey, position: i64, hash: Hash) -> Self {
        Self { key, position, hash }
    }

    /// Begins a batch: signature, and connection with the one before.
    pub fn batch(&self, checkpoint: &Checkpoint) -> Result<(), Problem> {
        let (first, last) = (checkpoint.first_position, checkpoint.last_position);
        if first != self.position + 1 || last < first {
            let what = format!("the checkpoint that begins here was removed; the next one begins at {first}");
            return Err(Problem::at(self.position + 1, what));
        }
        if !checkpoint.is_signed_by(&self.key) {
            return Err(Problem::at(first, format!("the signature of checkpoint {first} to {last} is not valid")));
        }
        if checkpoint.previous_hash != self.hash {
            let what = format!("checkpoint {first} to {last} does not continue the one before it");
            return Err(Problem::at(first, what));
        }
        Ok(())
    }

    /// One event and its seal.
    pub fn event(&mut self, seal: &Seal, entry: Option<&Entry>) -> Result<(), Problem> {
        self.follows(seal)?;
        compare(seal, entry)?;
        self.advance(seal);
        Ok(())
    }

    /// The seal of an event that a signed record says has left.
    pub fn left(&mut self, seal: &Seal) -> Result<(), Problem> {
        self.follows(seal)?;
        self.advance(seal);
        Ok(())
    }

    fn follows(&self, seal: &Seal) -> Result<(), Problem> {
        if seal.position != self.position + 1 {
            return Err(Problem::at(self.position + 1, "the event and its seal were removed"));
        }
        Ok(())
    }

    fn advance(&mut self, seal: &Seal) {
        self.position = seal.position;
        self.hash = link(&self.hash, &seal.leaf);
    }

    /// Ends a batch. `first` is its first seal, to be named when rows were changed together with their seals.
    pub fn batch_end(&self, checkpoint: &Checkpoint, first: Option<&Seal>) -> Result<(), Problem> {
        if self.position != checkpoint.last_position {
            return Err(Problem::at(self.position + 1, "the event and its seal were removed"));
        }
        if self.hash == checkpoint.hash {
            return Ok(());
        }
        let what = format!(
            "altered: a row of positions {} to {} was changed together with its seal",
            checkpoint.first_position, checkpoint.last_position
        );
        Err(first.map_or_else(|| Problem::at(checkpoint.first_position, &what), |seal| Problem::sealed(seal, &what)))
    }
}
