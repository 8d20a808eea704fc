//! The protocol between node and guest agent: JSON lines over a virtio-serial port.
//!
//! The one rule: neither side trusts the other's bytes. A line longer than [`MAX_LINE`] or one that does not parse is
//! dropped, and nothing it claimed has happened.
//!
//! ```text
//! host opens the port -> "\n" Hello{session} -> (guest) HelloAck{session, state}    both sides start from zero
//!                        guest: NeedConfig   -> Config
//!                        guest: NeedKeys     -> Keys
//!                        guest: State ... (on every change)
//!                        host:  Config, unasked, when the app is to change  -> State{app_revision, ...}
//!                        host:  LogsOpen     -> Log ... LogEnd
//!                        host:  Containers, Stats -> the same with its answer
//!                        host:  Shutdown     -> State{shutdown_progress} ... power off
//! ```
//! The host may come and go (a node restart): after each `Hello` the guest repeats its whole state and asks again for
//! what it still needs; it answers nothing that was asked before. Until the `HelloAck` with its own session the host
//! ignores every line, because they are left over from the host before it.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Longest line of the protocol in bytes, newline included.
pub const MAX_LINE: usize = 1024 * 1024;

/// Name of the virtio-serial port inside the guest: `/dev/virtio-ports/<this>`.
pub const PORT_NAME: &str = "org.holdfast.agent.0";

/// Kernel argument that makes the initramfs print [`PROBE_MARKER`] on the console and power off.
pub const PROBE_ARG: &str = "holdfast.probe";
pub const PROBE_MARKER: &str = "holdfast-probe-ok";

/// dstack's words for how far a boot is, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BootProgress {
    Booting,
    RequestingAppKeys,
    InitializingDataDisk,
    MountingDataDisk,
    DataDiskReady,
    SettingUpDocker,
    InitScript,
    PreLaunch,
    StartingContainers,
    RunningMainScript,
    Done,
}

impl BootProgress {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::RequestingAppKeys => "requesting app keys",
            Self::InitializingDataDisk => "initializing data disk",
            Self::MountingDataDisk => "mounting data disk",
            Self::DataDiskReady => "data disk ready",
            Self::SettingUpDocker => "setting up docker",
            Self::InitScript => "init-script",
            Self::PreLaunch => "pre-launch",
            Self::StartingContainers => "starting containers",
            Self::RunningMainScript => "running main script",
            Self::Done => "done",
        }
    }
}

/// A boot that did not end well. `step` is the progress word it failed in; `message` is shown to the app's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootError {
    pub step: String,
    pub message: String,
}

/// What the guest needs to run its app. Holds no secret: `encrypted_env` is ciphertext.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub vm_uuid: String,
    pub app_id: String,
    pub instance_id: String,
    pub hostname: String,
    /// The exact bytes of app-compose.json, as text.
    pub app_compose: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted_env: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_config: Option<String>,
    /// Wall clock of the host, for guests whose own clock is off.
    pub now: Timestamp,
    /// Generation of desired state that this is of; never 0. A guest applies the highest one it was given.
    #[serde(default)]
    pub revision: u64,
}

impl Config {
    /// True when a guest that runs the app of one need not do anything for the other.
    pub fn is_same_app(&self, other: &Self) -> bool {
        self.app_compose == other.app_compose
            && self.encrypted_env == other.encrypted_env
            && self.user_config == other.user_config
    }
}

/// Keys of one instance. They exist in the server's memory, on the wire to the node, in the node's memory for the time
/// of one write, and in the guest. `Debug` does not show them.
#[derive(Clone, Serialize, Deserialize)]
pub struct Keys {
    /// X25519 private key that env values are encrypted to, 64 hex digits.
    pub env_key: String,
    /// Key of the data disk, 64 hex digits.
    pub disk_key: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// A container as `docker ps --all` knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    /// With the leading `/` that docker gives them.
    pub names: Vec<String>,
    pub image: String,
    pub image_id: String,
    pub command: String,
    /// Unix seconds.
    pub created: i64,
    /// `running`, `exited`, ...
    pub state: String,
    /// `Up 3 minutes`, ...
    pub status: String,
}

/// A word of [`GuestState::can`]: the agent answers [`ToGuest::Stats`].
pub const CAN_STATS: &str = "stats";
/// A word of [`GuestState::can`]: the agent sends logs as entries where [`ToGuest::LogsOpen`] asks for that.
pub const CAN_ENTRIES: &str = "log_entries";

/// The machine as the guest's own kernel sees it. Sizes are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemStats {
    pub os_name: String,
    pub os_version: String,
    pub kernel_version: String,
    pub cpu_model: String,
    pub num_cpus: u32,
    pub total_memory: u64,
    pub available_memory: u64,
    pub used_memory: u64,
    pub free_memory: u64,
    pub total_swap: u64,
    pub used_swap: u64,
    pub free_swap: u64,
    /// Seconds since the kernel started.
    pub uptime: u64,
    /// Load averages in hundredths, as dstack gives them: 150 is a load of 1.5.
    pub loadavg_one: u32,
    pub loadavg_five: u32,
    pub loadavg_fifteen: u32,
    pub disks: Vec<DiskStats>,
}

/// A mounted disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    pub name: String,
    pub mount_point: String,
    pub total_size: u64,
    pub free_size: u64,
}

/// What the owner's text ([`Config::user_config`]) asks of the guest itself, where it is a JSON object that does. Anything
/// else in it is the app's business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserConfig {
    pub hostname: Option<String>,
    /// Lines for `authorized_keys`.
    pub ssh_authorized_keys: Vec<String>,
    pub default_gateway_domain: Option<String>,
}

impl UserConfig {
    /// Never fails: a text that says nothing of this asks for nothing.
    pub fn of(text: Option<&str>) -> Self {
        let said: serde_json::Value = text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
        let word = |key: &str| said[key].as_str().map(str::trim).filter(|t| !t.is_empty());
        let keys = said["ssh_authorized_keys"].as_array().into_iter().flatten().filter_map(|key| key.as_str());
        Self {
            hostname: word("hostname").map(hostname),
            ssh_authorized_keys: keys.flat_map(authorized_keys).collect(),
            default_gateway_domain: word("default_gateway_domain").map(str::to_owned),
        }
    }
}

/// The keys of a text that may hold several, one a line.
pub fn authorized_keys(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter(|line| !line.contains(char::is_control)).map(str::to_owned).collect()
}

/// A name that a kernel takes as its host name, from any name.
pub fn hostname(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = name.chars().map(plain).take(63).collect();
    let text = text.trim_matches('-');
    if text.is_empty() { "vm".to_owned() } else { text.to_owned() }
}

/// Which part of a log, and how. Times are what docker accepts: RFC 3339, unix seconds, or `10m`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Lines from the end; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    #[serde(default)]
    pub follow: bool,
    #[serde(default)]
    pub timestamps: bool,
}

/// Host to guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum ToGuest {
    /// `session` is random per opening of the port.
    Hello {
        session: String,
    },
    Config(Box<Config>),
    Keys(Keys),
    /// The server cannot give what was asked for now; ask again after `retry_s` seconds, or never when absent. `what` is
    /// `keys`: the configuration is the node's own.
    Refused {
        what: String,
        reason: String,
        retry_s: Option<u32>,
    },
    /// Stop the app (at most `grace_s` seconds), sync, power off.
    Shutdown {
        grace_s: u32,
    },
    Containers {
        id: u64,
    },
    /// Answered by an agent whose state says [`CAN_STATS`]; older ones take it for rubbish.
    Stats {
        id: u64,
    },
    LogsOpen {
        id: u64,
        container: String,
        options: LogOptions,
        /// Each [`FromGuest::Log`] is to be one entry, whole and with its time; an older agent does not know of it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        entries: bool,
    },
    LogsClose {
        id: u64,
    },
    /// The guest may send `bytes` more data bytes on stream `id`. Every stream begins with [`crate::node::STREAM_WINDOW`].
    LogsCredit {
        id: u64,
        bytes: u64,
    },
}

/// How the guest is doing; always the whole truth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestState {
    pub agent_version: String,
    /// The guest kernel's boot id.
    pub boot_id: String,
    pub boot_progress: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_error: Option<BootError>,
    /// [`Config::revision`] that `boot_progress` and `boot_error` speak of; 0 before the first configuration.
    #[serde(default)]
    pub app_revision: u64,
    /// `powering off` is the last word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_progress: Option<String>,
    /// Milliseconds after kernel start at which each progress word of this boot, or of the newest change of a running
    /// app, was reached, in order.
    #[serde(default)]
    pub timeline: Vec<(String, u64)>,
    /// What this agent answers beside what every agent does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub can: Vec<String>,
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum FromGuest {
    HelloAck {
        session: String,
        state: GuestState,
    },
    NeedConfig,
    NeedKeys,
    State(GuestState),
    Containers {
        id: u64,
        containers: Vec<Container>,
        #[serde(default)]
        error: Option<String>,
    },
    /// Without `stats` the `error` says why.
    Stats {
        id: u64,
        #[serde(default)]
        stats: Option<Box<SystemStats>>,
        #[serde(default)]
        error: Option<String>,
    },
    /// `channel` is 1 for stdout and 2 for stderr; `data` is base64.
    Log {
        id: u64,
        channel: u8,
        data: String,
        /// When it was written, in nanoseconds since 1970, where entries were asked for. Of two entries of one channel the
        /// later one has the later time, unless the guest's clock was set back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<i64>,
    },
    LogEnd {
        id: u64,
        #[serde(default)]
        error: Option<crate::node::StreamError>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_older_builds_are_of_no_revision() {
        let said = r#"{"is":"state","agent_version":"0","boot_id":"b","boot_progress":"done"}"#;
        let Ok(FromGuest::State(state)) = serde_json::from_str(said) else { panic!("no state") };
        assert_eq!((state.app_revision, state.boot_progress.as_str()), (0, "done"));
        let config = r#"{"vm_uuid":"","app_id":"","instance_id":"","hostname":"h","app_compose":"{}","now":"2026-01-01T00:00:00Z"}"#;
        let config: Config = serde_json::from_str(config).expect("a configuration");
        assert_eq!(config.revision, 0);
    }

    #[test]
    fn the_owners_text_may_ask_something_of_the_guest() {
        let text = r#"{"hostname":" My Host. ","ssh_authorized_keys":["ssh-ed25519 AAAA me\n# no key\nssh-rsa BBBB",7,"  "],
            "default_gateway_domain":"apps.example","mine":1}"#;
        let asked = UserConfig::of(Some(text));
        assert_eq!(asked.hostname.as_deref(), Some("my-host"));
        assert_eq!(asked.ssh_authorized_keys, ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]);
        assert_eq!(asked.default_gateway_domain.as_deref(), Some("apps.example"));
        let nothing = UserConfig::default();
        for text in [
            None,
            Some(""),
            Some("key=value"),
            Some("[]"),
            Some("null"),
            Some(r#"{"hostname":5,"ssh_authorized_keys":"x"}"#),
        ] {
            assert_eq!(UserConfig::of(text), nothing, "{text:?}");
        }
        assert_eq!(authorized_keys("a\u{1b}[2Jb\r\nssh-rsa C"), ["ssh-rsa C"]);
    }

    #[test]
    fn the_same_app_is_what_the_guest_would_run_not_what_it_is_called() {
        let config: Config = serde_json::from_str(
            r#"{"vm_uuid":"","app_id":"","instance_id":"","hostname":"h","app_compose":"{}","now":"2026-01-01T00:00:00Z"}"#,
        )
        .expect("a configuration");
        let renamed = Config { hostname: "other".into(), revision: 7, now: Timestamp(0), ..config.clone() };
        assert!(config.is_same_app(&renamed));
        for other in [
            Config { app_compose: "{ }".into(), ..config.clone() },
            Config { encrypted_env: Some("00".into()), ..config.clone() },
            Config { user_config: Some(String::new()), ..config.clone() },
        ] {
            assert!(!config.is_same_app(&other));
        }
    }
}
