//! CVMs in the shapes that the Phala clients read.
//!
//! The one rule: every documented key is there, null when unknown, because the clients' schemas want the key and not
//! only the value; `/state` alone leaves out what it does not know. What a shape needs is loaded for a whole list at
//! once ([`load`]), so that a page costs the same few queries however many CVMs are on it.

pub mod basic;
pub mod hosted;
pub mod info;
pub mod machine;
pub mod parts;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use holdfast_control::Control;
use holdfast_control::deploy::{KMS_KEY, KMS_SLUG};
use holdfast_model::Timestamp;
use holdfast_model::compose::AppCompose;
use holdfast_model::error::Error;
use holdfast_model::hashid::{self, Prefix};
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{DISK_FULL, Phase, VmReport};
use holdfast_model::vm::PortMapping;
use holdfast_store::vms::Vm;
use serde_json::value::RawValue;

use parts::{CvmNetworkUrls, GuestEvent, KmsInfo};

/// A CVM with all that any shape shows of it.
pub struct Cvm {
    pub vm: Vm,
    pub status: &'static str,
    pub compose: AppCompose,
    pub report: Option<VmReport>,
    /// By port inside the VM.
    pub ports: Vec<PortMapping>,
    /// The image as the CVM's node offers it; `None` once the node has it no more.
    pub image: Option<ImageInfo>,
    /// Hex of the X25519 key that env values are encrypted to.
    pub env_public_key: String,
    pub public_urls: Vec<CvmNetworkUrls>,
    /// Where the serial log is read; a query has begun already.
    pub log_url: String,
    pub node_online: bool,
    /// When this was looked at.
    pub now: Timestamp,
}

/// Loads what belongs to these CVMs, in their order.
pub async fn load(control: &Control, vms: Vec<Vm>) -> Result<Vec<Cvm>, Error> {
    if vms.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<i64> = vms.iter().map(|vm| vm.id).collect();
    let nodes: BTreeSet<i64> = vms.iter().map(|vm| vm.node_id).collect();
    let nodes: Vec<i64> = nodes.into_iter().collect();
    let parts = control.store.vm_parts(ids, nodes).await?;
    let mut ports: HashMap<i64, Vec<PortMapping>> = HashMap::new();
    for (vm, port) in parts.ports {
        ports.entry(vm).or_default().push(port);
    }
    let images: HashMap<i64, Vec<ImageInfo>> = parts.images.into_iter().collect();
    let (now, patience) = (control.now(), control.node_patience());
    vms.into_iter()
        .map(|vm| {
            let offered = images.get(&vm.node_id).into_iter().flatten();
            let ports = ports.remove(&vm.id).unwrap_or_default();
            Ok(Cvm {
                status: vm.status()?.as_str(),
                compose: compose_of(&vm)?,
                report: vm.report()?,
                public_urls: public_urls(&vm, &ports, &control.settings.public_url),
                image: offered.into_iter().find(|i| i.name == vm.image).cloned(),
                env_public_key: control.env_public_key(&vm.app_id)?,
                log_url: control.log_url(&vm),
                node_online: vm.node_last_seen_at >= now.micros() - patience,
                ports,
                now,
                vm,
            })
        })
        .collect()
}

/// app-compose.json, with what was made public or hidden since.
fn compose_of(vm: &Vm) -> Result<AppCompose, Error> {
    let said = AppCompose::parse(&vm.compose).map_err(Error::internal)?;
    Ok(AppCompose {
        public_logs: vm.public_logs.unwrap_or(said.public_logs),
        public_sysinfo: vm.public_sysinfo.unwrap_or(said.public_sysinfo),
        public_tcbinfo: vm.public_tcbinfo.unwrap_or(said.public_tcbinfo),
        ..said
    })
}

/// What happened to these CVMs outside of their operations, by CVM, oldest first.
pub async fn load_events(control: &Control, cvms: &[Cvm]) -> Result<HashMap<i64, Vec<GuestEvent>>, Error> {
    let mut events: HashMap<i64, Vec<GuestEvent>> = HashMap::new();
    for (vm, event) in control.store.vm_events(cvms.iter().map(|cvm| cvm.vm.id).collect()).await? {
        events.entry(vm).or_default().push(event.into());
    }
    Ok(events)
}

/// The same for one CVM.
pub async fn load_one(control: &Control, vm: Vm) -> Result<Cvm, Error> {
    load(control, vec![vm]).await?.pop().ok_or_else(|| Error::internal("a CVM vanished while it was loaded"))
}

impl Cvm {
    pub fn hashid(&self) -> String {
        hashid::encode(Prefix::Cvm, self.vm.id)
    }

    /// True while QEMU runs, as far as the node last said.
    pub fn is_up(&self) -> bool {
        self.report.as_ref().is_some_and(|r| matches!(r.phase, Phase::Running | Phase::Stopping))
    }

    /// True once the guest agent has answered since QEMU started.
    pub fn agent_answered(&self) -> bool {
        self.report.as_ref().is_some_and(|r| r.agent)
    }

    /// The UUID to ask the guest agent by. `Err` says in words for the user why it cannot answer.
    pub fn guest(&self) -> Result<uuid::Uuid, String> {
        if !self.is_up() {
            return Err(format!("The CVM is {}.", self.status));
        }
        if let Some(why) = self.paused() {
            return Err(why.to_owned());
        }
        if !self.agent_answered() {
            return Err("The CVM is booting; its guest agent has not answered yet.".to_owned());
        }
        self.vm.uuid.parse().map_err(|_| "The CVM has no valid UUID.".to_owned())
    }

    /// How long QEMU has been running, as dstack words it: `1h 2m 3s`, or `never`.
    pub fn uptime(&self) -> String {
        let started = self.report.as_ref().filter(|_| self.is_up()).and_then(|r| r.started_at);
        started.map_or_else(|| "never".to_owned(), |started| span(self.now.since(started)))
    }

    pub fn boot_progress(&self) -> Option<String> {
        self.report.as_ref().and_then(|r| r.boot_progress.clone())
    }

    /// Why the machine stands still although it is to run, in words for the user.
    pub fn paused(&self) -> Option<&'static str> {
        self.report.as_ref()?.paused.as_deref().map(|why| match why {
            DISK_FULL => {
                "The machine stands still because the disk of its node is full; it goes on when there is room."
            }
            _ => "The machine stands still.",
        })
    }

    /// The step that failed and why; or why the machine stands still, which clients show nowhere else.
    pub fn boot_error(&self) -> Option<String> {
        let error = self.report.as_ref().and_then(|r| r.boot_error.as_ref());
        let failed = error.map(|error| format!("{}: {}", error.step, error.message));
        failed.or_else(|| self.paused().map(|why| format!("paused: {why}")))
    }

    pub fn shutdown_progress(&self) -> Option<String> {
        self.report.as_ref().and_then(|r| r.shutdown_progress.clone())
    }

    pub fn exited_at(&self) -> Option<String> {
        self.report.as_ref().and_then(|r| r.exited_at).map(|at| at.to_string())
    }

    /// The compose file, unless the app runs a script instead.
    pub fn docker_compose_file(&self) -> Option<String> {
        self.compose.docker_compose_file.clone()
    }

    /// app-compose.json as it is kept.
    pub fn app_compose(&self) -> Box<RawValue> {
        RawValue::from_string(self.vm.compose.clone()).unwrap_or_else(|_| RawValue::NULL.to_owned())
    }
}

/// This server's own key management service, off any chain.
pub fn kms_info(control: &Control) -> KmsInfo {
    KmsInfo {
        id: kms_id(),
        slug: Some(KMS_SLUG.to_owned()),
        url: control.settings.public_url.clone(),
        version: holdfast_model::VERSION.to_owned(),
        chain_id: None,
        kms_contract_address: None,
        gateway_app_id: None,
    }
}

pub fn kms_id() -> String {
    hashid::encode(Prefix::Kms, KMS_KEY)
}

/// One URL per published port. There is one instance behind each, so app and instance are the same place.
fn public_urls(vm: &Vm, ports: &[PortMapping], public_url: &str) -> Vec<CvmNetworkUrls> {
    let host = published_host(&vm.node_publish_address, public_url);
    let urls = ports.iter().map(|port| format!("http://{host}:{}", port.host_port));
    urls.map(|url| CvmNetworkUrls { app: url.clone(), instance: url }).collect()
}

/// The host to reach a node's published ports at. A node that listens on all its addresses is taken to be where the
/// server is.
fn published_host(address: &str, public_url: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => url::Url::parse(public_url)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned))
            .unwrap_or_else(|| "localhost".to_owned()),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => address.to_owned(),
    }
}

/// `2d 3h 4m 5s`, without leading and trailing units that are zero.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [("d", seconds / 86_400), ("h", seconds / 3600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let words: Vec<_> = units.iter().filter(|(_, n)| *n > 0).map(|(unit, n)| format!("{n}{unit}")).collect();
    if words.is_empty() { "0s".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_like_those_of_dstack() {
        let of = |seconds| span(Duration::from_secs(seconds));
        assert_eq!(of(0), "0s");
        assert_eq!(of(63), "1m 3s");
        assert_eq!(of(3600), "1h");
        assert_eq!(of(2 * 86_400 + 5), "2d 5s");
    }

    #[test]
    fn published_ports_are_reached_at_the_node() {
        assert_eq!(published_host("127.0.0.1", "https://cloud.example"), "127.0.0.1");
        assert_eq!(published_host("0.0.0.0", "https://cloud.example:8440"), "cloud.example");
        assert_eq!(published_host("::", "http://[::1]:8440"), "[::1]");
        assert_eq!(published_host("2001:db8::1", "http://x"), "[2001:db8::1]");
    }
}
