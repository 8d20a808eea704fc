//! Real VMs. Two tests at a time (`--test-threads=2`): an emulated guest runs on one core, whatever its vCPUs.

mod changes;
mod cli;
mod crashes;
mod followers;
mod full_disk;
mod secrets;
