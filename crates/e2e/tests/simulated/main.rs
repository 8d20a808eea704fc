//! Everything that needs no guest: crashes at every step, bad input, ids, histories. Fast, so that many combinations fit.

mod apps;
mod audit;
mod bad_input;
mod command_line;
mod crashes;
mod disk_full;
mod history;
mod identifiers;
mod lifecycle;
mod lists;
mod logins;
mod oidc;
mod operating;
mod people;
mod projects;
mod races;
mod schemathesis;
mod sdks;
mod serving;
mod traps;
mod updates;
mod webhooks;
