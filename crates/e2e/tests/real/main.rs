//! Real VMs. One test at a time (`--test-threads=1`): two cores boot one guest in 11 to 15 seconds.

mod changes;
mod cli;
mod crashes;
mod secrets;
