//! Changing a CVM: what is asked becomes the next revision, is checked against the node it runs on, and is accepted as one
//! operation with one whole diff.
//!
//! The one rule: an update says only what it changes; everything else is taken from the revision in force, inside the
//! transaction that accepts it. So two updates after one another never undo each other's changes, and what is reserved is
//! exactly what the difference takes.
//!
//! ```text
//! Update (fields to change) + revision in force -> next revision -> checks and ports -> diff -> plan -> accepted
//! ```

use std::collections::BTreeSet;

use holdfast_engine::revision::{Change, Effect, Revision, Visibility};
use holdfast_engine::{Decision, Plan, decide, ops};
use holdfast_model::Timestamp;
use holdfast_model::compose::{self, AppCompose};
use holdfast_model::error::{Code, Error};
use holdfast_model::vm::{PortChoice, PortMapping, RunState, StopMode, VmStatus};
use holdfast_store::accept::{IfBusy, Touch, VmSubmit, vm_operation_accept};
use holdfast_store::history::Operation;
use holdfast_store::idempotency::{idempotency_operation, idempotency_take};
use holdfast_store::interventions::operation_link_retry;
use holdfast_store::nodes::Node;
use holdfast_store::vms::Vm;
use holdfast_store::{Store, Tx, desired, nodes, operations, provisions, revisions};
use serde_json::{Map, Value};
use tokio::time::Instant;
use uuid::Uuid;

use crate::catalogue::Catalogue;
use crate::deploy::{check_env, check_name, port_seed};
use crate::vms::{GRACE_S, check_turn, not_found};
use crate::{Control, Principal, RequestInfo, placement};

/// What a caller asks to change. What is `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Update {
    pub name: Option<String>,
    pub instance_type: Option<String>,
    pub vcpu: Option<i64>,
    pub memory_mb: Option<i64>,
    pub disk_gb: Option<i64>,
    pub image: Option<String>,
    /// Hash of an app-compose.json that was provisioned in the workspace; it replaces the whole one.
    pub compose_hash: Option<String>,
    pub docker_compose_file: Option<String>,
    /// Empty: none any more.
    pub pre_launch_script: Option<String>,
    pub allowed_envs: Option<Vec<String>>,
    /// Hex of the ciphertext of all values.
    pub encrypted_env: Option<String>,
    /// Names of the encrypted values; they become the allowed ones.
    pub env_keys: Option<Vec<String>>,
    pub user_config: Option<String>,
    /// Ports of the CVM that are published, instead of the ones that are.
    pub ports: Option<BTreeSet<u16>>,
    pub listed: Option<bool>,
    pub public_logs: Option<bool>,
    pub public_sysinfo: Option<bool>,
    pub public_tcbinfo: Option<bool>,
    /// Seconds that the guest gets to stop its app, for a shutdown and where a change starts it anew.
    pub shutdown_timeout: Option<u32>,
    /// A shutdown may end a guest that does not power off.
    pub allow_force_stop: Option<bool>,
    /// Do not change what makes a running CVM start anew.
    pub without_restart: bool,
}

/// An update that was accepted.
#[derive(Debug)]
pub struct Updated {
    /// As it is from now on.
    pub vm: Vm,
    /// Public id of the operation.
    pub operation: Uuid,
    /// The CVM starts anew for it.
    pub restarts: bool,
    pub allowed_envs_changed: bool,
}

/// A next revision that was found to be possible.
struct Admitted {
    next: Revision,
    /// `None` when it is what is in force.
    change: Option<Change>,
}

impl Control {
    /// Accepts an update as one operation. It is named after what it really changes, or `plan` if that is nothing; then it
    /// is over at once.
    pub async fn vm_update(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        plan: &'static Plan,
        update: Update,
        status_code: u16,
    ) -> Result<Updated, Error> {
        let target = Target { plan, status_code, retry_of: None };
        self.update_submit(who, info, id, target, Asked::Changes(Box::new(update))).await
    }

    /// Makes the changes of a failed update again, on what is in force now.
    pub(crate) async fn vm_update_again(
        &self,
        who: &Principal,
        info: &RequestInfo,
        failed: &Operation,
        plan: &'static Plan,
    ) -> Result<Uuid, Error> {
        let target = Target { plan, status_code: 202, retry_of: Some(failed.id) };
        let updated = self.update_submit(who, info, &failed.resource_uuid, target, Asked::Again(failed.id)).await?;
        Ok(updated.operation)
    }

    /// Keeps an app-compose.json for an update of this CVM, and returns its hash. `compose_file` without a name gets the
    /// CVM's.
    pub async fn update_provision(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        compose_file: &Map<String, Value>,
    ) -> Result<(Vm, String), Error> {
        let vm = self.vm_find(who, id).await?;
        let content = compose::normalize(compose_file, &vm.name)?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            // It promises nothing, and the same bytes are kept once: nothing is done twice.
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
        }
        let hash = compose_keep(&mut tx, &vm, &content, now).await?;
        holdfast_store::commit(tx).await?;
        Ok((vm, hash))
    }

    async fn update_submit(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        target: Target,
        asked: Asked,
    ) -> Result<Updated, Error> {
        let vm_id = self.vm_find(who, id).await?.id;
        let (now, began) = (self.now(), Instant::now());
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            let operation = idempotency_operation(&mut tx, who.workspace_id, key).await?.ok_or_else(not_found)?;
            let operation = operation.parse().map_err(Error::internal)?;
            let vm = Store::vm_in(&mut tx, vm_id).await?;
            return Ok(Updated { vm, operation, restarts: false, allowed_envs_changed: false });
        }
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        check_turn(&mut tx, &vm, target.plan, IfBusy::Refuse).await?;
        revisions::revision_first(&mut tx, vm_id, None, now).await?;
        let current = revisions::revision_in_force(&mut tx, &vm).await?;
        let without_restart = matches!(&asked, Asked::Changes(update) if update.without_restart);
        let wanted = match asked {
            Asked::Changes(update) => self.revised(who, &current, *update).await?,
            Asked::Again(failed) => match revisions::revisions_of(&mut tx, failed).await? {
                Some((base, done)) => current.clone().with_changes_of(&base, &done),
                None => current.clone(),
            },
        };
        let Admitted { next, change } = self.admit(&mut tx, &vm, &current, wanted).await?;
        let runs = desired::run_state(&mut tx, vm_id).await? == Some(RunState::Running);
        let least = if vm.status()? == VmStatus::Running { Effect::Restart } else { Effect::Live };
        let restarts = runs && change.as_ref().is_some_and(|change| change.effect >= least);
        if restarts && without_restart {
            let why = "This change needs the CVM to start anew, which was not allowed.";
            return Err(Error::new(Code::RestartNeeded, why));
        }
        if change.is_some() {
            compose_keep(&mut tx, &vm, &next.compose, now).await?;
        }
        let operation = accept(&mut tx, who, info, &vm, &target, (&current, &next, change.as_ref()), now).await?;
        let allowed_envs_changed = change.as_ref().is_some_and(|change| change.diff.contains_key("allowed_envs"));
        // The claim is held by now, so its first step need not wait for a worker.
        let begun = self.begin_in(&mut tx, operation.0, now).await?;
        let vm = Store::vm_in(&mut tx, vm_id).await?;
        if self.accept_end(tx, info, operation.0, began).await?
            && let Some((plan, decision)) = begun
        {
            if decision.record.status.is_terminal() {
                self.metrics.finished(plan, decision.record.status, now, now);
            }
            if decision.desired.is_some() {
                self.ring_desired();
            }
        }
        Ok(Updated { vm, operation: operation.1, restarts, allowed_envs_changed })
    }

    /// The revision in force with the changes that are asked for, as far as they can be judged without a node.
    pub(crate) async fn revised(&self, who: &Principal, current: &Revision, update: Update) -> Result<Revision, Error> {
        let provisioned = match &update.compose_hash {
            Some(hash) => Some(self.store.app_compose(&who.scope(), hash).await?.ok_or_else(|| {
                Error::new(Code::ProvisionMissing, "Provision data not found: no app-compose.json has this hash.")
            })?),
            None => None,
        };
        revised(&self.settings.catalogue, current, update, provisioned)
    }

    /// Checks the next revision against the CVM's node, and gives it host ports.
    async fn admit(&self, tx: &mut Tx, vm: &Vm, current: &Revision, mut next: Revision) -> Result<Admitted, Error> {
        if next.disk_gb < current.disk_gb {
            let message = format!("disk_size: a disk is never made smaller; this one has {} GB.", current.disk_gb);
            return Err(Error::new(Code::DiskShrinks, message));
        }
        let all = nodes::nodes_for_placement(tx).await?;
        let node = all.iter().find(|node| node.id == vm.node_id);
        let node = node.ok_or_else(|| Error::internal("a CVM is placed on a node that does not exist"))?;
        if next.image != current.image {
            let image = node.images()?.into_iter().find(|image| image.name == next.image).ok_or_else(|| {
                let message = format!("The CVM's node has no OS image \"{}\".", next.image);
                Error::new(Code::ImageNotFound, message)
            })?;
            next.os_image_hash = image.os_image_hash;
        }
        placement::fits_grown(node, [current, &next].map(|r| (r.vcpu, r.memory_mb, r.disk_gb)), self.policy())?;
        if (&next.compose_hash, &next.port_choice) != (&current.compose_hash, &current.port_choice) {
            let seed = port_seed(&vm.app_id)?;
            let published = next.port_choice.published(&AppCompose::parse(&next.compose)?.published()?);
            next.ports = ports(tx, node, current, &published, seed).await?;
        }
        let change = Change::between(current, &next);
        Ok(Admitted { next, change })
    }

    /// Takes the first step of an operation that this transaction accepted, and says what was decided.
    async fn begin_in(
        &self,
        tx: &mut Tx,
        operation: i64,
        now: Timestamp,
    ) -> Result<Option<(&'static Plan, Decision)>, Error> {
        let claimed = operations::operation_accepted(tx, operation).await?;
        let plan = ops::find(&claimed.operation_type, u32::try_from(claimed.plan_version).unwrap_or(0));
        let loaded = operations::operation_load(tx, &claimed, self.node_patience(), now).await?;
        let (Some(plan), Some((record, world))) = (plan, loaded) else { return Ok(None) };
        let decision = decide(plan, &record, &world, &self.settings.deadlines, now);
        operations::operation_write(tx, &claimed, &decision, now).await?;
        Ok(Some((plan, decision)))
    }
}

/// What is to be changed.
enum Asked {
    Changes(Box<Update>),
    /// What this failed operation was to change.
    Again(i64),
}

/// How it is to be accepted.
struct Target {
    /// For a change of nothing.
    plan: &'static Plan,
    /// What the audit row says that the caller got.
    status_code: u16,
    retry_of: Option<i64>,
}

/// Writes the operation and its revision. Returns the operation's row and public id.
async fn accept(
    tx: &mut Tx,
    who: &Principal,
    info: &RequestInfo,
    vm: &Vm,
    target: &Target,
    (current, next, change): (&Revision, &Revision, Option<&Change>),
    now: Timestamp,
) -> Result<(i64, Uuid), Error> {
    let diff = change.map(|change| change.diff.clone()).unwrap_or_default();
    let fields: Vec<_> = diff.keys().cloned().collect();
    let grace_s = next.shutdown.timeout_s.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(GRACE_S);
    let stop = StopMode::Graceful { grace_s };
    let submit = VmSubmit {
        plan: ops::plan_of(current, next).unwrap_or(target.plan),
        vm_id: vm.id,
        vm_uuid: &vm.uuid,
        vm_name: &vm.name,
        compose_hash: &next.compose_hash,
        status_before: vm.status()?,
        request: serde_json::json!({ "stop": stop, "fields": fields }),
        diff,
        touches: vec![
            Touch { kind: "app", id: vm.app_row, role: "parent" },
            Touch { kind: "node", id: vm.node_id, role: "placed_on" },
        ],
        status_code: target.status_code,
        if_busy: IfBusy::Refuse,
    };
    let (operation, uuid) = vm_operation_accept(tx, who, info, submit, now).await?;
    if change.is_some() {
        revisions::revision_insert(tx, vm, operation, next, now).await?;
    }
    if let Some(of) = target.retry_of {
        operation_link_retry(tx, operation, of).await?;
    }
    Ok((operation, uuid))
}

async fn compose_keep(tx: &mut Tx, vm: &Vm, content: &str, now: Timestamp) -> Result<String, Error> {
    let hash = compose::sha256_hex(content);
    provisions::app_compose_insert(tx, (vm.workspace_id, vm.project_id), &hash, content, now).await?;
    Ok(hash)
}

/// Host ports for what is published now: the ones that the CVM has, and free ones for what is new.
async fn ports(
    tx: &mut Tx,
    node: &Node,
    current: &Revision,
    published: &BTreeSet<u16>,
    seed: u64,
) -> Result<Vec<PortMapping>, Error> {
    let mut ports: Vec<_> = current.ports.iter().filter(|p| published.contains(&p.vm_port)).cloned().collect();
    let new: Vec<u16> = published.iter().copied().filter(|port| !ports.iter().any(|p| p.vm_port == *port)).collect();
    let host_ports = placement::ports_choose(tx, node, new.len(), seed).await?;
    ports.extend(new.into_iter().zip(host_ports).map(|(vm_port, host_port)| PortMapping {
        protocol: "tcp".to_owned(),
        host_address: node.publish_address.clone(),
        host_port,
        vm_port,
    }));
    ports.sort_by_key(|port| port.vm_port);
    Ok(ports)
}

/// Pure: everything that an update says, on top of the revision in force. `provisioned` are the bytes that
/// `update.compose_hash` names.
fn revised(
    catalogue: &Catalogue,
    current: &Revision,
    update: Update,
    provisioned: Option<String>,
) -> Result<Revision, Error> {
    let mut next = current.clone();
    if let Some(name) = &update.name {
        check_name(name)?;
        next.name.clone_from(name);
    }
    resized(catalogue, &mut next, &update)?;
    if let Some(image) = &update.image {
        next.image.clone_from(image);
    }
    composed(&mut next, &update, provisioned)?;
    if let Some(text) = &update.encrypted_env {
        next.encrypted_env = Some(check_env(text)?);
        next.env_names = match update.env_keys {
            Some(names) => names,
            None => AppCompose::parse(&next.compose)?.allowed_envs,
        };
    }
    if let Some(text) = update.user_config {
        next.user_config = Some(text);
    }
    next.listed = update.listed.unwrap_or(next.listed);
    next.shutdown.timeout_s = update.shutdown_timeout.map(i64::from).or(next.shutdown.timeout_s);
    next.shutdown.force = update.allow_force_stop.unwrap_or(next.shutdown.force);
    let said = AppCompose::parse(&next.compose)?;
    if let Some(wanted) = &update.ports {
        let by_compose = said.published()?;
        if *wanted != next.port_choice.published(&by_compose) {
            next.port_choice = PortChoice::of(wanted, &by_compose);
        }
    }
    // What app-compose.json says anyway is not said a second time.
    let over = |asked: Option<bool>, before: Option<bool>, said: bool| match asked {
        Some(value) => (value != said).then_some(value),
        None => before,
    };
    let Visibility { logs, sysinfo, tcbinfo } = next.visibility;
    next.visibility = Visibility {
        logs: over(update.public_logs, logs, said.public_logs),
        sysinfo: over(update.public_sysinfo, sysinfo, said.public_sysinfo),
        tcbinfo: over(update.public_tcbinfo, tcbinfo, said.public_tcbinfo),
    };
    Ok(next)
}

fn resized(catalogue: &Catalogue, next: &mut Revision, update: &Update) -> Result<(), Error> {
    if let Some(id) = &update.instance_type {
        let size = catalogue.find(id)?;
        (next.vcpu, next.memory_mb) = (size.vcpu, size.memory_mb);
        next.instance_type = Some(size.id.clone());
    }
    for (field, value, asked, least) in [
        ("vcpu", &mut next.vcpu, update.vcpu, 1),
        ("memory", &mut next.memory_mb, update.memory_mb, 512),
        ("disk_size", &mut next.disk_gb, update.disk_gb, 1),
    ] {
        let Some(asked) = asked else { continue };
        if asked < least {
            return Err(Error::field("body", field, "greater_than_equal", format!("must be at least {least}")));
        }
        if asked > i64::from(i32::MAX) {
            return Err(Error::field("body", field, "less_than_equal", "is more than any node has"));
        }
        *value = asked;
    }
    // A type is a name for a size: another size has another name, or none.
    let named = next.instance_type.as_deref().and_then(|id| catalogue.find(id).ok());
    let resized = update.vcpu.is_some() || update.memory_mb.is_some();
    if update.instance_type.is_none()
        && resized
        && named.is_some_and(|t| (t.vcpu, t.memory_mb) != (next.vcpu, next.memory_mb))
    {
        next.instance_type = catalogue.of_size(next.vcpu, next.memory_mb).map(|fits| fits.id.clone());
    }
    Ok(())
}

/// Makes the next app-compose.json: a provisioned one, or the one in force with some of its parts replaced.
fn composed(next: &mut Revision, update: &Update, provisioned: Option<String>) -> Result<(), Error> {
    if let Some(content) = provisioned {
        if compose::sha256_hex(&content) != next.compose_hash {
            // It says itself what is public.
            next.visibility = Visibility::default();
        }
        next.compose = content;
    }
    let app = AppCompose::parse(&next.compose)?;
    let before: Map<String, Value> = serde_json::from_str(&next.compose).map_err(Error::internal)?;
    let mut parts = before.clone();
    if let Some(text) = &update.docker_compose_file {
        if app.runner != "docker-compose" {
            let why = "docker_compose_file: the app runs a script; provision a whole app-compose.json instead.";
            return Err(Error::new(Code::FeatureMissing, why));
        }
        parts.insert("docker_compose_file".to_owned(), text.as_str().into());
    }
    if let Some(text) = &update.pre_launch_script {
        parts.insert("pre_launch_script".to_owned(), text.as_str().into());
        if text.is_empty() {
            parts.remove("pre_launch_script");
        }
    }
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    let names = update.allowed_envs.as_ref().or(update.env_keys.as_ref().filter(|_| update.encrypted_env.is_some()));
    if let Some(names) = names.filter(|names| set(names) != set(&app.allowed_envs)) {
        parts.insert("allowed_envs".to_owned(), names.clone().into());
    }
    if parts != before {
        next.compose = compose::normalize(&parts, &next.name)?;
    }
    next.compose_hash = compose::sha256_hex(&next.compose);
    Ok(())
}
