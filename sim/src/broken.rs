//! Ways to break the rules on purpose, to prove that the simulator sees it.
//!
//! The one rule: each is a change around the product's code (in this crate's store, worker or node), never in it.

/// A rule that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The store does not look at the fencing token of a write.
    Fencing,
    /// An undo writes no desired state.
    Undo,
    /// A mutation is accepted while another holds the VM.
    Claim,
    /// A node takes any generation, older ones too.
    Generations,
    /// Capacity and ports are given back when `absent` is asked for, not when it is so.
    Release,
    /// A report does not wake the operation that waits for it, and no deadline is kept.
    Wake,
    /// The end of an operation leaves those that wait for its VM waiting.
    Promotion,
    /// The newest of those that wait is the next.
    Order,
    /// An operation that waited begins with what it saw when it was accepted.
    Turn,
}

impl Broken {
    pub const ALL: [Self; 9] = [
        Self::Fencing,
        Self::Undo,
        Self::Claim,
        Self::Generations,
        Self::Release,
        Self::Wake,
        Self::Promotion,
        Self::Order,
        Self::Turn,
    ];
}
