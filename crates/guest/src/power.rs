//! How a VM ends: by the host's word, ctrl-alt-del, the power button, or a signal to PID 1.
//!
//! The one rule: it always ends. Each step has a limit, and behind all of them stands a deadline after which the power goes
//! off whatever still runs; the data disk's journal makes even that safe.

use std::fs::{self, File};
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use crate::session::Agent;
use crate::{daemons, disk, init, runner};

/// What a stop that nobody gave a limit for may take.
const DEFAULT_GRACE: Duration = Duration::from_secs(20);
/// For everything after the app.
const REST: Duration = Duration::from_secs(20);

/// Starts the threads that wait for ctrl-alt-del, signals and the power button.
pub fn watch(agent: &Arc<Agent>) {
    // From now on ctrl-alt-del is a SIGINT to PID 1 and no longer an instant reset.
    let _ = rustix::system::reboot(RebootCommand::CadOff);
    let for_signals = Arc::clone(agent);
    init::spawn("signals", move || {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else { return };
        for _ in signals.forever() {
            let agent = Arc::clone(&for_signals);
            init::spawn("shutdown", move || shut_down(&agent, DEFAULT_GRACE));
        }
    });
    let for_button = Arc::clone(agent);
    init::spawn("button", move || {
        if power_button_pressed() {
            shut_down(&for_button, DEFAULT_GRACE);
        }
    });
}

/// Blocks until the ACPI power button is pressed; false when the machine has none.
fn power_button_pressed() -> bool {
    const EVENT: usize = 24;
    const KEY_POWER: u16 = 116;
    let Some(device) = fs::read_dir("/sys/class/input").into_iter().flatten().flatten().find(|entry| {
        entry.file_name().to_string_lossy().starts_with("event")
            && fs::read_to_string(entry.path().join("device/name")).is_ok_and(|n| n.trim() == "Power Button")
    }) else {
        return false;
    };
    let Ok(mut events) = File::open(std::path::Path::new("/dev/input").join(device.file_name())) else { return false };
    let mut event = [0u8; EVENT];
    while events.read_exact(&mut event).is_ok() {
        let (kind, code) = (u16::from_ne_bytes([event[16], event[17]]), u16::from_ne_bytes([event[18], event[19]]));
        if kind == 1 && code == KEY_POWER && event[20] == 1 {
            return true;
        }
    }
    false
}

/// Stops the app, then everything else, and powers off. Does not come back, except when a shutdown runs already.
pub fn shut_down(agent: &Arc<Agent>, grace: Duration) {
    if !agent.begin_shutdown() {
        return;
    }
    init::spawn("deadline", move || {
        thread::sleep(grace + REST);
        init::console("shutdown took too long");
        init::power_off();
    });
    agent.shutdown_progress("stopping app");
    runner::stop(grace);
    agent.shutdown_progress("stopping docker");
    daemons::stop(Duration::from_secs(5));
    agent.shutdown_progress("unmounting data disk");
    // kill(-1): every process there is, except this one.
    for signal in [Signal::TERM, Signal::KILL] {
        let _ = rustix::process::kill_process_group(Pid::INIT, signal);
        thread::sleep(Duration::from_millis(100));
    }
    disk::close();
    rustix::fs::sync();
    agent.shutdown_progress("powering off");
    agent.flush(Duration::from_secs(1));
    init::power_off();
}
