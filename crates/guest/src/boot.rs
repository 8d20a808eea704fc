//! From an answering agent to a running app.
//!
//! The one rule: each step is named before it is tried, so that whatever goes wrong, slow or silent, the host knows where
//! the boot is; a step that fails ends the boot and leaves the VM up, to be looked at.
//!
//! ```text
//! thread boot:     config -> keys -> data disk -> docker -> images, scripts -> runner -> done
//! thread network:  address, way out        containerd: started before anything else, it needs no disk
//! ```

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use holdfast_model::compose::AppCompose;
use holdfast_model::guest::{BootError, BootProgress, Config, Keys};
use rustix::time::{ClockId, Timespec};
use zeroize::Zeroize;

use crate::env::Env;
use crate::session::{Agent, pause};
use crate::{daemons, disk, init, runner};

/// Docker's start on a busy, emulated machine.
const DOCKER_LIMIT: Duration = Duration::from_secs(180);
/// A clock that is off by less is left alone.
const CLOCK_SLACK_MICROS: i64 = 2_000_000;

/// Boots the app. Errors end up in the guest's state.
pub fn run(agent: &Arc<Agent>) {
    init::spawn("read-ahead", init::read_ahead);
    let network = thread::spawn(init::network);
    let warm_up = thread::spawn(disk::warm_up);
    daemons::start_containerd();
    let config = agent.need_config();
    init::set_hostname(&config.hostname);
    set_clock(&config);
    let mut env = Env::default();
    if let Err(message) = app(agent, &config, &mut env, network, warm_up) {
        let message = env.mask(&message);
        init::console(&format!("boot failed at: {}", agent.step()));
        agent.set_error(Some(BootError { step: agent.step(), message }));
    }
}

fn app(
    agent: &Agent,
    config: &Config,
    env: &mut Env,
    network: thread::JoinHandle<()>,
    warm_up: thread::JoinHandle<()>,
) -> Result<(), String> {
    agent.progress(BootProgress::RequestingAppKeys);
    let app = AppCompose::parse(&config.app_compose).map_err(|e| e.message)?;
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

    *env = Env::open(&env_key, config.encrypted_env.as_deref(), &app.allowed_envs)?;
    drop(env_key);
    runner::prepare(env)?;
    let with_docker = app.runner != "bash";
    if with_docker {
        agent.progress(BootProgress::SettingUpDocker);
        daemons::start_docker(DOCKER_LIMIT)?;
        runner::load_images()?;
    }
    let _ = network.join();
    if let Some(script) = app.init_script.as_deref().filter(|s| !s.trim().is_empty()) {
        agent.progress(BootProgress::InitScript);
        runner::run_script("init-script", script, env)?;
    }
    if let Some(script) = app.pre_launch_script.as_deref().filter(|s| !s.trim().is_empty()) {
        agent.progress(BootProgress::PreLaunch);
        runner::run_script("pre-launch", script, env)?;
        runner::prepare(env)?;
    }
    if with_docker {
        agent.progress(BootProgress::StartingContainers);
        runner::compose_up(&app, env)?;
    } else {
        agent.progress(BootProgress::RunningMainScript);
        runner::start_script(&app, std::mem::take(env))?;
    }
    agent.progress(BootProgress::Done);
    Ok(())
}

/// Asks for the keys until they are given, or refused for good.
fn keys(agent: &Agent) -> Result<Keys, String> {
    loop {
        match agent.need_keys() {
            Ok(keys) => return Ok(keys),
            Err((reason, None)) => return Err(format!("the app's keys were refused: {reason}")),
            Err((reason, Some(retry_s))) => {
                init::console(&format!("keys not given ({reason}); asking again in {retry_s} s"));
                if !pause(agent, Duration::from_secs(retry_s.clamp(1, 300).into())) {
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
