//! The agent inside the VM. It is `/init` of the initramfs, then PID 1 of the root: one static binary that is the whole
//! trusted userland of ours in a guest.
//!
//! The one rule: PID 1 never ends and never blocks on anything that the host, the network or the app controls. Whatever can
//! wait does so on a thread of its own, behind a bound.
#![forbid(unsafe_code)]

mod app;
mod boot;
mod containers;
mod credentials;
mod daemons;
mod disk;
mod engine;
mod env;
mod init;
mod initramfs;
mod lines;
mod logs;
mod port;
mod power;
mod process;
mod runner;
mod session;
mod stats;
mod tail;

use std::time::Duration;

fn main() {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        println!("holdfast-guest {}: started as the init of a Holdfast VM only", holdfast_model::VERSION);
        return;
    }
    if let Err(error) = initramfs::run() {
        init::console(&format!("cannot start: {error}"));
        init::power_off();
    }
    init::run();
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
