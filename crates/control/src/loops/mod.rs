//! Loops that run for as long as the server does. Each can be stopped between any two of its steps and started elsewhere.
//! Webhooks have theirs beside them: [`crate::webhooks::dispatch`].

pub mod credentials;
pub mod retention;
pub mod scheduled_deletes;
pub mod sealer;
pub mod worker;
