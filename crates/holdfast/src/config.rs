//! The configuration: defaults, a file, variables and options, in rising order.
//!
//! The one rule: `config.default.toml` is the only place where a default stands. A key that the code does not know, or
//! that the file does not have, fails a test here and stops a start with one line.

mod oidc;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use holdfast_control::catalogue::Catalogue;
use holdfast_control::certificates::authorities;
use holdfast_control::oidc::Secret;
use holdfast_control::rates::{Rate, Rates};
use holdfast_control::webhooks::guard::Guard;
use ipnet::IpNet;
use serde::Deserialize;
use toml::{Table, Value};

const DEFAULTS: &str = include_str!("../../../config.default.toml");

/// Every key of `config.default.toml`, as it is there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    data_dir: String,
    pub listen: SocketAddr,
    pub public_url: String,
    pub tls_cert: String,
    pub tls_key: String,
    pub insecure_http: bool,
    master_key_file: String,
    pub log: String,
    pub log_format: LogFormat,
    pub vcpu_overcommit: f64,
    pub disk_overcommit: f64,
    pub node_offline_after_s: u64,
    pub log_url_lifetime_s: u64,
    pub retention: Retention,
    pub queue_limit: u16,
    github_url: String,
    pub rate_limit_reads: RateLimit,
    pub rate_limit_mutations: RateLimit,
    pub rate_limit_failures: RateLimit,
    instance_types: String,
    webhook_networks: Networks,
    webhook_http: bool,
    webhook_ca_file: String,
    webhooks_per_workspace: u32,
    oidc_issuer: String,
    oidc_client_id: String,
    oidc_client_secret: Secret,
    oidc_client_secret_file: String,
    oidc_ca_file: String,
    oidc_name: String,
    oidc_scopes: String,
    oidc_username_claim: String,
    oidc_email_claim: String,
    oidc_email_verified_claim: String,
    oidc_link_email: bool,
    oidc_create_users: bool,
    oidc_workspace: String,
    oidc_role: String,
    pub deadline_prepare_s: u64,
    pub deadline_start_s: u64,
    pub deadline_boot_s: u64,
    pub deadline_launch_s: u64,
    pub deadline_stop_s: u64,
    pub deadline_remove_s: u64,
    pub node: NodeMode,
    pub hypervisor: Hypervisor,
    pub simulated_step_ms: u64,
    image_dir: String,
    node_name: String,
    pub node_region: String,
    pub publish_address: std::net::IpAddr,
    pub port_first: u16,
    pub port_last: u16,
    pub reserve_memory_mb: u64,
    pub min_free_disk_gb: u64,
    pub max_vms: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// How long operations stay: `forever`, or a number with `d`, `h`, `m` or `s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Retention(pub Option<Duration>);

impl TryFrom<String> for Retention {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self(None));
        }
        let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
        let read = |(unit, seconds): (&str, u64)| {
            let count: u64 = text.strip_suffix(unit)?.parse().ok()?;
            count.checked_mul(seconds).filter(|seconds| (1..=100_000 * 86_400).contains(seconds))
        };
        let seconds = units.into_iter().find_map(read);
        let seconds =
            seconds.ok_or_else(|| format!("retention \"{text}\" is not \"forever\" and no time like \"365d\""))?;
        Ok(Self(Some(Duration::from_secs(seconds))))
    }
}

/// So many in so much time, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RateLimit(pub Option<Rate>);

impl TryFrom<String> for RateLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let rate = text.parse().map_err(|why| format!("rate limit: {why}, and not \"none\""))?;
        Ok(Self(Some(rate)))
    }
}

/// Ranges of addresses, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Networks(pub Vec<IpNet>);

impl TryFrom<String> for Networks {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let read = |word: &str| word.parse().map_err(|_| format!("\"{word}\" is no range like \"10.1.0.0/16\""));
        words.map(read).collect::<Result<_, _>>().map(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeMode {
    Embedded,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hypervisor {
    Qemu,
    Simulated,
}

impl Config {
    /// Puts the layers together. `options` are the keys given on the command line.
    pub fn load(file: Option<&Path>, options: &[(&str, Option<String>)]) -> Result<Self> {
        let mut table: Table = DEFAULTS.parse().context("config.default.toml")?;
        if let Some(file) = file {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let theirs: Table =
                text.parse().map_err(|e: toml::de::Error| anyhow!("{}: {}", file.display(), one_line(e.message())))?;
            for (key, value) in theirs {
                if !table.contains_key(&key) {
                    bail!("{}: unknown key \"{key}\"", file.display());
                }
                table.insert(key, value);
            }
        }
        let keys: Vec<String> = table.keys().cloned().collect();
        for key in keys {
            let name = format!("HOLDFAST_{}", key.to_ascii_uppercase());
            if let Ok(text) = std::env::var(&name) {
                put(&mut table, &key, &text).with_context(|| format!("variable {name}"))?;
            }
        }
        for (key, text) in options {
            if let Some(text) = text {
                put(&mut table, key, text).with_context(|| format!("option --{}", key.replace('_', "-")))?;
            }
        }
        let config: Self =
            table.try_into().map_err(|e: toml::de::Error| anyhow!("configuration: {}", one_line(&e.to_string())))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if self.tls_cert.is_empty() != self.tls_key.is_empty() {
            bail!("tls_cert and tls_key belong together; only one is set");
        }
        if !self.listen.ip().is_loopback() && self.tls_cert.is_empty() && !self.insecure_http {
            bail!(
                "listen address {} is not loopback: give --tls-cert and --tls-key, or --insecure-http if something else ends TLS",
                self.listen
            );
        }
        for (key, text) in [("public_url", &self.public_url), ("github_url", &self.github_url)] {
            if text.is_empty() && key == "public_url" {
                continue;
            }
            let url = url::Url::parse(text).context(key)?;
            if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
                bail!("{key} \"{text}\" is not an http or https URL");
            }
        }
        for (key, factor) in [("vcpu_overcommit", self.vcpu_overcommit), ("disk_overcommit", self.disk_overcommit)] {
            if !(0.1..=1000.0).contains(&factor) {
                bail!("{key} = {factor} is not between 0.1 and 1000");
            }
        }
        self.oidc_checked()?;
        if self.port_first == 0 || self.port_first > self.port_last {
            bail!("port_first = {} and port_last = {} are no range", self.port_first, self.port_last);
        }
        Ok(())
    }

    pub fn data_dir(&self) -> Result<PathBuf> {
        if !self.data_dir.is_empty() {
            return absolute(&self.data_dir);
        }
        Ok(user_folder("XDG_DATA_HOME", ".local/share")?.join("holdfast"))
    }

    pub fn image_dir(&self) -> Result<PathBuf> {
        if !self.image_dir.is_empty() {
            return absolute(&self.image_dir);
        }
        Ok(user_folder("XDG_CACHE_HOME", ".cache")?.join("holdfast").join("images"))
    }

    pub fn master_key_file(&self) -> Result<PathBuf> {
        if !self.master_key_file.is_empty() {
            return absolute(&self.master_key_file);
        }
        Ok(self.data_dir()?.join("master.key"))
    }

    pub fn node_name(&self) -> String {
        if !self.node_name.is_empty() {
            return self.node_name.clone();
        }
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(63).collect();
        if name.is_empty() { "node".to_owned() } else { name }
    }

    /// What the core works with; files that some of it stands in are read by [`Config::catalogue`] and
    /// [`Config::webhook_authorities`].
    pub fn settings(&self, port: u16) -> holdfast_control::Settings {
        let scheme = if self.tls_cert.is_empty() { "http" } else { "https" };
        let made = || format!("{scheme}://{}", SocketAddr::new(self.listen.ip(), port));
        let public_url = if self.public_url.is_empty() { made() } else { self.public_url.clone() };
        let seconds = Duration::from_secs;
        holdfast_control::Settings {
            public_url: public_url.trim_end_matches('/').to_owned(),
            vcpu_overcommit: self.vcpu_overcommit,
            disk_overcommit: self.disk_overcommit,
            deadlines: holdfast_engine::Deadlines {
                prepare: seconds(self.deadline_prepare_s),
                start: seconds(self.deadline_start_s),
                boot: seconds(self.deadline_boot_s),
                launch: seconds(self.deadline_launch_s),
                stop: seconds(self.deadline_stop_s),
                remove: seconds(self.deadline_remove_s),
            },
            node_patience: seconds(self.node_offline_after_s),
            log_url_lifetime: seconds(self.log_url_lifetime_s),
            retention: self.retention.0,
            queue_limit: i64::from(self.queue_limit),
            github_url: self.github_url.trim_end_matches('/').to_owned(),
            github_patience: seconds(10),
            rates: Rates {
                reads: self.rate_limit_reads.0,
                mutations: self.rate_limit_mutations.0,
                failures: self.rate_limit_failures.0,
            },
            webhooks: holdfast_control::webhooks::Options {
                guard: Guard { networks: self.webhook_networks.0.clone(), http: self.webhook_http },
                authorities: Vec::new(),
                per_workspace: i64::from(self.webhooks_per_workspace),
            },
            ..holdfast_control::Settings::default()
        }
    }

    /// The instance types on offer; a mistake in their file is one line.
    pub fn catalogue(&self) -> Result<Catalogue> {
        if self.instance_types.is_empty() {
            return Ok(Catalogue::default());
        }
        let file = absolute(&self.instance_types)?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("instance_types {}", file.display()))?;
        Catalogue::parse(&text).map_err(|why| anyhow!("instance_types {}: {why}", file.display()))
    }

    /// Who may sign certificates of webhook receivers; a mistake in their file is one line.
    pub fn webhook_authorities(&self) -> Result<Vec<reqwest::Certificate>> {
        authorities_of("webhook_ca_file", &self.webhook_ca_file)
    }

    /// What a node of this host works with.
    pub fn node_config(&self, server: String, token: String, data_dir: PathBuf) -> Result<holdfast_node::NodeConfig> {
        let mut node = holdfast_node::NodeConfig::new(server, token, data_dir, self.image_dir()?);
        node.name = self.node_name();
        node.region = (!self.node_region.is_empty()).then(|| self.node_region.clone());
        node.hypervisor = match self.hypervisor {
            Hypervisor::Qemu => holdfast_node::HypervisorKind::Qemu,
            Hypervisor::Simulated => holdfast_node::HypervisorKind::Simulated,
        };
        node.simulated_step = Duration::from_millis(self.simulated_step_ms);
        node.publish_address = self.publish_address.to_string();
        node.port_range = (self.port_first, self.port_last);
        node.reserve_memory_mb = self.reserve_memory_mb;
        node.min_free_disk_gb = self.min_free_disk_gb;
        node.slots = (self.max_vms > 0).then_some(self.max_vms);
        Ok(node)
    }
}

/// Sets a key from text, in the type that its default has.
fn put(table: &mut Table, key: &str, text: &str) -> Result<()> {
    let default = table.get(key).ok_or_else(|| anyhow!("unknown key \"{key}\""))?;
    let wrong = |what: &str| anyhow!("\"{text}\" is not {what}");
    let value = match default {
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| wrong("a whole number"))?),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| wrong("a number"))?),
        Value::Boolean(_) => match text {
            "true" | "1" => Value::Boolean(true),
            "false" | "0" => Value::Boolean(false),
            _ => return Err(wrong("true or false")),
        },
        _ => Value::String(text.to_owned()),
    };
    table.insert(key.to_owned(), value);
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The certificates of the file that this key names; a mistake in it is one line.
fn authorities_of(key: &str, file: &str) -> Result<Vec<reqwest::Certificate>> {
    if file.is_empty() {
        return Ok(Vec::new());
    }
    let file = absolute(file)?;
    let pem = std::fs::read(&file).with_context(|| format!("{key} {}", file.display()))?;
    authorities(&pem).map_err(|why| anyhow!("{key} {}: {why}", file.display()))
}

fn absolute(text: &str) -> Result<PathBuf> {
    std::path::absolute(text).with_context(|| format!("path {text}"))
}

fn user_folder(variable: &str, below_home: &str) -> Result<PathBuf> {
    match std::env::var_os(variable).filter(|v| !v.is_empty()) {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => {
            let home = std::env::var_os("HOME").filter(|v| !v.is_empty());
            let home = home.ok_or_else(|| anyhow!("HOME is not set; name the folder with an option"))?;
            Ok(PathBuf::from(home).join(below_home))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_complete() {
        // Every field must be in the file (no field has a default in code), and every key must be a field.
        let config = Config::load(None, &[]).expect("the defaults");
        assert_eq!(config.listen.port(), 8440);
        for line in DEFAULTS.lines().filter(|l| l.contains(" = ")) {
            let at = DEFAULTS.find(line).expect("a line of it");
            let before = DEFAULTS[..at].trim_end().lines().last().unwrap_or_default();
            assert!(
                before.starts_with('#')
                    || line.starts_with("tls_key")
                    || line.starts_with("deadline")
                    || line.starts_with("port_last"),
                "{line} has no comment"
            );
        }
    }

    #[test]
    fn options_win_and_mistakes_are_one_line() {
        let set = |key, text: &str| Config::load(None, &[(key, Some(text.to_owned()))]);
        assert_eq!(set("hypervisor", "simulated").expect("valid").hypervisor, Hypervisor::Simulated);
        for (key, text) in [
            ("listen", "here"),
            ("simulated_step_ms", "soon"),
            ("hypervisor", "xen"),
            ("nonsense", "1"),
            ("listen", "0.0.0.0:8440"),
            ("public_url", "example"),
            ("github_url", ""),
            ("github_url", "ftp://github.com"),
            ("vcpu_overcommit", "0"),
            ("retention", "0d"),
            ("webhook_networks", "10.1.0.0"),
            ("retention", "a year"),
            ("rate_limit_reads", "many"),
            ("rate_limit_failures", "0/s"),
        ] {
            let error = set(key, text).expect_err(text);
            assert!(!format!("{error:#}").contains('\n'), "{error:#}");
        }
    }

    #[test]
    fn retention_is_a_time_or_forever() {
        let day = 86_400;
        for (text, seconds) in [("forever", None), ("365d", Some(365 * day)), ("48h", Some(2 * day)), ("10s", Some(10))]
        {
            let config = Config::load(None, &[("retention", Some(text.to_owned()))]).expect("valid");
            assert_eq!(config.settings(1).retention, seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn rate_limits_are_none_until_they_are_set() {
        let config = Config::load(None, &[("rate_limit_reads", Some("20/s".to_owned()))]).expect("valid");
        let rates = config.settings(1).rates;
        assert_eq!((rates.reads.map(|rate| rate.count.get()), rates.mutations), (Some(20), None));
    }

    #[test]
    fn a_file_of_instance_types_is_read_and_its_mistakes_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a path").to_owned();
        let load = |text: &str| {
            std::fs::write(file.path(), text).expect("written");
            Config::load(None, &[("instance_types", Some(path.clone()))]).expect("valid").catalogue()
        };
        let good = "[[type]]\nid = \"x\"\nfamily = \"f\"\nname = \"X\"\nvcpu = 1\nmemory_mb = 512\n";
        assert_eq!(load(good).expect("valid").all().len(), 1);
        let error = format!("{:#}", load(&good.replace("vcpu = 1", "vcpu = 0")).expect_err("no vCPU"));
        assert!(error.contains(&path) && error.contains("vcpu = 0") && !error.contains('\n'), "{error}");
        let config = Config::load(None, &[("instance_types", Some("/nowhere/x.toml".to_owned()))]).expect("valid");
        assert!(format!("{:#}", config.catalogue().expect_err("no file")).contains("/nowhere/x.toml"));
    }

    #[test]
    fn a_file_of_authorities_is_read_and_its_mistakes_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a path").to_owned();
        let load = || Config::load(None, &[("webhook_ca_file", Some(path.clone()))]).expect("valid");
        let error = format!("{:#}", load().webhook_authorities().expect_err("an empty file"));
        assert!(error.contains(&path) && error.contains("no certificate") && !error.contains('\n'), "{error}");
        let authority = rcgen::generate_simple_self_signed(["hooks.example".to_owned()]).expect("a certificate");
        std::fs::write(file.path(), authority.cert.pem().repeat(2)).expect("written");
        assert_eq!(load().webhook_authorities().expect("valid").len(), 2);
        let config = Config::load(None, &[("webhook_ca_file", Some("/nowhere/ca.pem".to_owned()))]).expect("valid");
        assert!(format!("{:#}", config.webhook_authorities().expect_err("no file")).contains("/nowhere/ca.pem"));
        assert!(Config::load(None, &[]).expect("valid").webhook_authorities().expect("none").is_empty());
    }

    #[test]
    fn an_unknown_key_of_a_file_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "listne = \"127.0.0.1:1\"\n").expect("written");
        let error = Config::load(Some(file.path()), &[]).expect_err("a misspelt key");
        assert!(format!("{error:#}").contains("listne"), "{error:#}");
    }
}
