//! The app: started at the end of a boot, and changed whenever the host gives a newer configuration.
//!
//! The one rule: one configuration at a time, and only the newest. What is being done for an older one is given up as soon
//! as a newer one is there, and nothing of it has to be undone: the same steps are taken again, and each of them only does
//! what is missing.
//!
//! ```text
//!   first configuration -> docker, images, init-script (once per boot) -+
//!   newer one, other app ----------------------------------------------+-> pre-launch -> compose up | script -> done
//! ```
//! A newer configuration of the very same app does not come here: [`Agent::receive`] acknowledges it.

use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_model::compose::AppCompose;
use holdfast_model::guest::{BootError, BootProgress, Config, UserConfig};
use zeroize::Zeroizing;

use crate::credentials::Credentials;
use crate::env::Env;
use crate::session::Agent;
use crate::{daemons, init, runner};

/// Docker's start on a busy, emulated machine.
const DOCKER_LIMIT: Duration = Duration::from_secs(180);
/// What a script may take to end before another one starts.
const SCRIPT_GRACE: Duration = Duration::from_secs(10);

/// What the app is run by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    Compose,
    Script,
}

/// What this boot has done so far.
struct App {
    env_key: Zeroizing<[u8; 32]>,
    /// Takes the network's thread when it is needed first.
    network: Option<JoinHandle<()>>,
    docker_up: bool,
    init_script_ran: bool,
    runs: Option<Runs>,
    credentials: Credentials,
}

/// Says how far the app is; the first word of a change takes the state over from the app before.
struct Words<'a> {
    agent: &'a Agent,
    begins: Option<u64>,
}

impl Words<'_> {
    fn say(&mut self, reached: BootProgress) -> Result<(), String> {
        match self.begins.take() {
            Some(revision) => self.agent.begin_revision(revision, reached),
            None => self.agent.progress(reached),
        }
        if self.agent.superseded() { Err("given up".to_owned()) } else { Ok(()) }
    }
}

/// Runs the app of `config`, and then that of each newer configuration. Errors end up in the guest's state.
pub fn run(agent: &Agent, config: &Config, env_key: Zeroizing<[u8; 32]>, network: JoinHandle<()>) -> ! {
    let network = Some(network);
    let credentials = Credentials::default();
    let mut app = App { env_key, network, docker_up: false, init_script_ran: false, runs: None, credentials };
    app.change(&mut Words { agent, begins: None }, config);
    loop {
        let newer = agent.newer_config();
        app.change(&mut Words { agent, begins: Some(newer.revision) }, &newer);
    }
}

impl App {
    fn change(&mut self, words: &mut Words<'_>, config: &Config) {
        let mut env = Env::default();
        let Err(message) = self.steps(words, config, &mut env) else { return };
        let agent = words.agent;
        if agent.superseded() {
            // Whatever it was, nobody waits for it any more.
            return;
        }
        if words.begins.is_some() {
            let _ = words.say(BootProgress::StartingContainers);
        }
        init::console(&format!("the app failed at: {}", agent.step()));
        agent.set_error(Some(BootError { step: agent.step(), message: env.mask(&message) }));
    }

    fn steps(&mut self, words: &mut Words<'_>, config: &Config, env: &mut Env) -> Result<(), String> {
        let agent = words.agent;
        let app = AppCompose::parse(&config.app_compose).map_err(|e| e.message)?;
        let runs = if app.runner == "bash" { Runs::Script } else { Runs::Compose };
        *env = Env::open(&self.env_key, config.encrypted_env.as_deref(), &app.allowed_envs)?;
        runner::prepare(env)?;
        runner::write_user_config(config.user_config.as_deref())?;
        let asked = UserConfig::of(config.user_config.as_deref());
        init::set_hostname(asked.hostname.as_deref().unwrap_or(&config.hostname));
        self.credentials.renew(env, &asked.ssh_authorized_keys)?;
        if runs == Runs::Compose && !self.docker_up {
            words.say(BootProgress::SettingUpDocker)?;
            daemons::start_docker(DOCKER_LIMIT)?;
            runner::load_images()?;
            self.docker_up = true;
        }
        if let Some(network) = self.network.take() {
            let _ = network.join();
        }
        if !std::mem::replace(&mut self.init_script_ran, true)
            && let Some(script) = text(app.init_script.as_ref())
        {
            words.say(BootProgress::InitScript)?;
            runner::run_script(agent, "init-script", script, env)?;
        }
        if let Some(script) = text(app.pre_launch_script.as_ref()) {
            words.say(BootProgress::PreLaunch)?;
            runner::run_script(agent, "pre-launch", script, env)?;
            runner::prepare(env)?;
            self.credentials.renew(env, &asked.ssh_authorized_keys)?;
        }
        match (self.runs, runs) {
            (Some(Runs::Script), _) => runner::stop_script(SCRIPT_GRACE),
            (Some(Runs::Compose), Runs::Script) => runner::compose_down(agent, &app, env)?,
            _ => {}
        }
        self.runs = Some(runs);
        match runs {
            Runs::Compose => {
                words.say(BootProgress::StartingContainers)?;
                runner::compose_up(agent, &app, env)?;
            }
            Runs::Script => {
                words.say(BootProgress::RunningMainScript)?;
                runner::start_script(&app, std::mem::take(env))?;
            }
        }
        words.say(BootProgress::Done)
    }
}

fn text(script: Option<&String>) -> Option<&str> {
    script.map(String::as_str).filter(|s| !s.trim().is_empty())
}
