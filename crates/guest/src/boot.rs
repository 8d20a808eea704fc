//! From an answering agent to a machine with its data disk, on which [`crate::app`] runs the app.
//!
//! The one rule: each step is named before it is tried, so that whatever goes wrong, slow or silent, the host knows where
//! the boot is; a step that fails ends the boot and leaves the VM up, to be looked at.
//!
//! ```text
//! thread boot:     config -> keys -> data disk -> app, for ever
//! thread network:  address, way out        containerd: started before anything else, it needs no disk
//! ```

use std::thread;
use std::time::Duration;

use holdfast_model::guest::{BootError, BootProgress, Config, Keys};
use rustix::time::{ClockId, Timespec};
use zeroize::{Zeroize, Zeroizing};

use crate::session::{Agent, pause};
use crate::{app, daemons, disk, init};

/// A clock that is off by less is left alone.
const CLOCK_SLACK_MICROS: i64 = 2_000_000;

/// Boots the machine and runs the app on it, for ever. Errors end up in the guest's state.
pub fn run(agent: &Agent) {
    init::spawn("read-ahead", init::read_ahead);
    let network = thread::spawn(init::network);
    let warm_up = thread::spawn(disk::warm_up);
    daemons::start_containerd();
    let config = agent.need_config();
    init::set_hostname(&config.hostname);
    set_clock(&config);
    match machine(agent, warm_up) {
        Ok(env_key) => app::run(agent, &config, env_key, network),
        Err(message) => {
            init::console(&format!("boot failed at: {}", agent.step()));
            agent.set_error(Some(BootError { step: agent.step(), message }));
        }
    }
    // Without a machine no app can be changed: it failed for this configuration as for the one before.
    loop {
        agent.acknowledge(agent.newer_config().revision);
    }
}

/// Opens the data disk. Gives the key that the app's env is encrypted to.
fn machine(agent: &Agent, warm_up: thread::JoinHandle<()>) -> Result<Zeroizing<[u8; 32]>, String> {
    agent.progress(BootProgress::RequestingAppKeys);
    let mut keys = keys(agent)?;
    let opened = disk::key_bytes(&keys.disk_key).ok_or("the disk key is no key").and_then(|disk_key| {
        let env_key = disk::key_bytes(&keys.env_key).ok_or("the env key is no key")?;
        Ok((disk_key, env_key))
    });
    keys.env_key.zeroize();
    keys.disk_key.zeroize();
    let (disk_key, env_key) = opened?;

    let _ = warm_up.join();
    let data = disk::find()?;
    if data.is_new() {
        agent.progress(BootProgress::InitializingDataDisk);
        data.prepare(&disk_key)?;
        agent.progress(BootProgress::MountingDataDisk);
    } else {
        agent.progress(BootProgress::MountingDataDisk);
        data.open(&disk_key)?;
    }
    drop(disk_key);
    data.mount()?;
    agent.progress(BootProgress::DataDiskReady);
    Ok(env_key)
}

/// Asks for the keys until they are given, or refused for good.
fn keys(agent: &Agent) -> Result<Keys, String> {
    loop {
        match agent.need_keys() {
            Ok(keys) => return Ok(keys),
            Err((reason, None)) => return Err(format!("the app's keys were refused: {reason}")),
            Err((reason, Some(retry_s))) => {
                init::console(&format!("keys not given ({reason}); asking again in {retry_s} s"));
                if !pause(Duration::from_secs(retry_s.clamp(1, 300).into()), || agent.shutting_down()) {
                    return Err("the VM is shutting down".to_owned());
                }
            }
        }
    }
}

/// Takes the host's time when ours is far off, as in a guest that was resumed from a saved state.
fn set_clock(config: &Config) {
    let off = config.now.0.saturating_sub(crate::tail::now().0);
    if off.abs() > CLOCK_SLACK_MICROS {
        let time = Timespec {
            tv_sec: config.now.0.div_euclid(1_000_000),
            tv_nsec: (config.now.0.rem_euclid(1_000_000) * 1000) as _,
        };
        let _ = rustix::time::clock_settime(ClockId::Realtime, time);
    }
}
