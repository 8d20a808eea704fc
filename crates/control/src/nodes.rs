//! The server's side of the node protocol. See `holdfast_model::node` for the rule it keeps.

use std::time::Duration;

use holdfast_model::error::{Code, Error};
use holdfast_model::guest::Keys;
use holdfast_model::node::{DesiredPage, Register, Registered, Report, ReportAck};
use holdfast_store::{desired, nodes};
use uuid::Uuid;

use crate::Control;
use crate::deploy::app_id_bytes;

/// A node reports at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The longest a node may ask us to wait for news.
const LONGEST_WAIT: Duration = Duration::from_secs(55);

impl Control {
    /// The word of the Phala clients for a node's state.
    pub fn node_status(&self, node: &nodes::Node) -> &'static str {
        if !node.is_online(self.now(), self.node_patience()) {
            "OFFLINE"
        } else if node.cordoned {
            "MAINTENANCE"
        } else {
            "ONLINE"
        }
    }

    pub async fn node_register(&self, token_id: i64, hello: &Register) -> Result<Registered, Error> {
        check_register(hello)?;
        let mut tx = self.store.begin().await?;
        let (_, node) = nodes::node_register(&mut tx, token_id, hello, self.now()).await?;
        holdfast_store::commit(tx).await?;
        tracing::info!(
            node = hello.name,
            hypervisor = hello.hypervisor,
            accelerator = hello.accelerator.as_str(),
            "node registered"
        );
        Ok(Registered { node, heartbeat_s: u32::try_from(HEARTBEAT.as_secs()).unwrap_or(5) })
    }

    /// Desired state newer than `since`: at once when there is some, else when there is or after `wait`.
    pub async fn node_desired(
        &self,
        token_id: i64,
        session: Uuid,
        since: u64,
        wait: Duration,
    ) -> Result<DesiredPage, Error> {
        let deadline = tokio::time::Instant::now() + wait.min(LONGEST_WAIT);
        let mut changed = self.desired.subscribe();
        loop {
            // Marked as seen before the look, so that a change after it ends the wait.
            changed.borrow_and_update();
            let node_id = self.store.node_session(token_id, session).await?;
            if self.store.desired_revision(node_id).await? > since {
                return self.store.desired_page(node_id, since).await;
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Ok(DesiredPage { revision: since, vms: Vec::new() });
            }
        }
    }

    pub async fn node_report(&self, token_id: i64, report: &Report) -> Result<ReportAck, Error> {
        let node_id = self.store.node_session(token_id, report.session).await?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        let fresh = nodes::node_seen(&mut tx, node_id, report.seq, &report.health, &report.images, now).await?;
        let woken = fresh && desired::reports_write(&mut tx, node_id, &report.vms, now).await?;
        holdfast_store::commit(tx).await?;
        if woken {
            self.ring_work();
        }
        Ok(ReportAck { seq: report.seq })
    }

    /// Keys of a VM, for the node it is placed on, while it should exist. Derived on the spot and kept nowhere.
    pub async fn node_vm_keys(&self, token_id: i64, vm: Uuid) -> Result<Keys, Error> {
        let (app_id, instance_id) = self
            .store
            .node_vm_ids(token_id, &vm.to_string())
            .await?
            .ok_or_else(|| Error::new(Code::CvmNotFound, "This VM is not placed on this node."))?;
        let (app_id, instance_id) = (app_id_bytes(&app_id)?, app_id_bytes(&instance_id)?);
        let root = &self.keys.root;
        Ok(Keys {
            env_key: hex::encode(root.env_key(&app_id).secret.as_slice()),
            disk_key: hex::encode(root.disk_key(&app_id, &instance_id).as_slice()),
        })
    }
}

fn check_register(hello: &Register) -> Result<(), Error> {
    let bad = |field: &str, why: &str| Err(Error::field("body", field, "value_error", why));
    let name_ok = (1..=63).contains(&hello.name.len())
        && hello.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !name_ok {
        return bad("name", "must be 1 to 63 letters, digits, dots, dashes and underscores");
    }
    if hello.port_range.0 == 0 || hello.port_range.0 > hello.port_range.1 {
        return bad("port_range", "must begin above 0 and not end before it begins");
    }
    if hello.publish_address.parse::<std::net::IpAddr>().is_err() {
        return bad("publish_address", "must be an IP address");
    }
    Ok(())
}
