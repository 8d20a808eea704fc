//! Making a CVM: the first one of an app, and every further instance of it.
//!
//! The one rule: node, ports, rows and operation come in one transaction, so that what was chosen is what was there, and a
//! refusal leaves nothing.

use holdfast_engine::Plan;
use holdfast_engine::revision::{Shutdown, Visibility};
use holdfast_model::Timestamp;
use holdfast_model::compose::AppCompose;
use holdfast_model::error::Error;
use holdfast_model::operation::{Diff, FieldDiff, Value};
use holdfast_model::vm::{PortMapping, RestartPolicy, VmStatus};
use holdfast_store::accept::{IfBusy, Touch, VmSubmit, vm_operation_accept};
use holdfast_store::revisions::revision_first;
use holdfast_store::ssh_keys::ssh_keys_in;
use holdfast_store::vms::{self, NewVm, Vm};
use holdfast_store::{Store, Tx, nodes};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use crate::deploy::{Wanted, app_id_bytes, port_seed};
use crate::{Control, Principal, RequestInfo, placement, ssh_keys};

/// Everything of a CVM that is decided before its node is.
pub(crate) struct Blueprint {
    pub app_row: i64,
    /// 40 hex digits.
    pub app_id: String,
    pub wanted: Wanted,
    /// The bytes of app-compose.json, and their hash.
    pub compose: String,
    pub compose_hash: String,
    pub encrypted_env: Option<String>,
    pub env_names: Vec<String>,
    pub restart_policy: RestartPolicy,
    pub visibility: Visibility,
    pub shutdown: Shutdown,
    /// UUID of the CVM that it is made like.
    pub like: Option<String>,
}

impl Control {
    /// Places a CVM and accepts the operation that makes it; ends the transaction.
    pub(crate) async fn vm_create(
        &self,
        mut tx: Tx,
        who: &Principal,
        info: &RequestInfo,
        plan: &'static Plan,
        blueprint: Blueprint,
        (now, began): (Timestamp, Instant),
    ) -> Result<Vm, Error> {
        let Blueprint { app_row, app_id, wanted, .. } = blueprint;
        let published = AppCompose::parse(&blueprint.compose)?.published()?;
        let candidates = nodes::nodes_for_placement(&mut tx).await?;
        let node = placement::choose(&candidates, &wanted.ask(published.len()), self.policy())?;
        let host_ports = placement::ports_choose(&mut tx, node, published.len(), port_seed(&app_id)?).await?;
        let ports = published.iter().zip(host_ports).map(|(vm_port, host_port)| PortMapping {
            protocol: "tcp".to_owned(),
            host_address: node.publish_address.clone(),
            host_port,
            vm_port: *vm_port,
        });
        let os_image_hash = node.images()?.into_iter().find(|i| i.name == wanted.image).and_then(|i| i.os_image_hash);
        let keys = ssh_keys_in(&mut tx, who.user_id).await?;
        let new = NewVm {
            uuid: Uuid::new_v4().to_string(),
            app_row,
            node_id: node.id,
            name: wanted.name,
            instance_id: instance_id(&app_id)?,
            instance_type: wanted.instance_type,
            vcpu: wanted.vcpu,
            memory_mb: wanted.memory_mb,
            disk_gb: wanted.disk_gb,
            image: wanted.image,
            os_image_hash,
            compose_hash: blueprint.compose_hash,
            env_names: blueprint.env_names,
            encrypted_env: blueprint.encrypted_env,
            user_config: ssh_keys::with_keys(wanted.user_config, &keys),
            listed: wanted.listed,
            restart_policy: blueprint.restart_policy,
            visibility: blueprint.visibility,
            shutdown: blueprint.shutdown,
            ports: ports.collect(),
        };
        let vm_id = vms::vm_insert(&mut tx, who, &new, VmStatus::Creating, now).await?;
        let submit = VmSubmit {
            plan,
            vm_id,
            vm_uuid: &new.uuid,
            vm_name: &new.name,
            compose_hash: &new.compose_hash,
            status_before: VmStatus::Creating,
            request: request(&app_id, &new.compose_hash, blueprint.like.as_deref()),
            diff: diff(&new),
            touches: vec![
                Touch { kind: "app", id: app_row, role: "parent" },
                Touch { kind: "node", id: node.id, role: "placed_on" },
            ],
            status_code: 200,
            if_busy: IfBusy::Nobody,
        };
        let (operation, _) = vm_operation_accept(&mut tx, who, info, submit, now).await?;
        revision_first(&mut tx, vm_id, Some(operation), now).await?;
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        self.accept_end(tx, info, operation, began).await?;
        Ok(vm)
    }
}

/// What the operation says that it was asked for.
fn request(app_id: &str, compose_hash: &str, like: Option<&str>) -> serde_json::Value {
    let mut request = serde_json::json!({ "app_id": app_id, "compose_hash": compose_hash });
    if let Some(uuid) = like {
        request["like"] = uuid.into();
    }
    request
}

fn diff(new: &NewVm) -> Diff {
    let mut diff = Diff::new();
    let mut put = |field: &str, value: Value| {
        diff.insert(field.to_owned(), FieldDiff { from: None, to: Some(value) });
    };
    put("status", "running".into());
    put("name", new.name.as_str().into());
    put("vcpu", new.vcpu.into());
    put("memory_mb", new.memory_mb.into());
    put("disk_gb", new.disk_gb.into());
    put("image", new.image.as_str().into());
    put("compose_hash", new.compose_hash.as_str().into());
    if !new.env_names.is_empty() {
        // Names only: values are nobody's business but the guest's.
        put("env", new.env_names.clone().into());
    }
    if !new.ports.is_empty() {
        put("ports", new.ports.iter().map(|p| format!("{}:{}", p.host_port, p.vm_port)).collect::<Vec<_>>().into());
    }
    diff
}

/// sha256(seed || app id), cut to 20 bytes, as dstack makes it.
fn instance_id(app_id: &str) -> Result<String, Error> {
    let seed = holdfast_trust::random::<20>().map_err(Error::internal)?;
    let digest = Sha256::new().chain_update(seed).chain_update(app_id_bytes(app_id)?).finalize();
    Ok(hex::encode(&digest[..20]))
}
