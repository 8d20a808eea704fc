//! The surfaces through HTTP: real store, real worker, and a node that does at once what it is told.

mod access;
mod apps;
mod audit_log;
mod bad_input;
mod contract;
mod credentials;
mod deploy;
mod devices;
mod dry_run;
mod idempotency;
mod interventions;
mod kms;
mod lifecycle;
mod lists;
mod metrics;
mod node_tokens;
mod operations;
mod people;
mod queue;
mod replicas;
mod runtime;
mod shapes;
mod support;
mod updates;
mod watching;
