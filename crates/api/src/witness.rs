//! What tests see of a request's authorization: which permissions its handler asked for, and whether it got them.
//!
//! The one rule: a request that carries no witness costs one look into its extensions and is otherwise untouched, and a
//! witness changes no answer. Only tests attach one.

use std::sync::{Arc, Mutex, PoisonError};

use holdfast_model::access::Action;

/// Attached to a request as an extension; a copy of it tells afterwards what was asked.
#[derive(Debug, Clone, Default)]
pub struct Witness(Arc<Mutex<Vec<(Action, bool)>>>);

impl Witness {
    /// The handler asked for `action` of a caller it knows or does not know, and was refused or not.
    pub(crate) fn note(&self, action: Action, granted: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((action, granted));
    }

    /// Every action that was asked for, in order, with whether the caller has it.
    pub fn asked(&self) -> Vec<(Action, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
