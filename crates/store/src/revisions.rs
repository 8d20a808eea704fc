//! Revisions of VMs: adding one, putting one in force, and what is kept for the way back.
//!
//! The one rule: until an update is over, its node has room, ports and names for both of its revisions. So putting either
//! of them in force cannot fail for want of anything, and the way back is as sure as the way forth.
//!
//! ```text
//!   accept: revision n+1, and what it takes beyond n      (the row of `vm` is still n)
//!   apply:  `vm` becomes n+1, its ports are the active ones
//!   undo:   `vm` becomes n again
//!   end:    what only the other revision took is given back
//! ```

use std::collections::BTreeSet;

use holdfast_engine::Direction;
use holdfast_engine::revision::{Change, Revision, Shutdown, Visibility};
use holdfast_model::Timestamp;
use holdfast_model::compose::AppCompose;
use holdfast_model::error::Error;
use holdfast_model::vm::{PortChoice, PortMapping};

use crate::quotas::{Size, growth, quota_check};
use crate::reserved::{reservation_off, reservation_on};
use crate::sql::{self, record};
use crate::vms::{Vm, name_take, names_drop, port_row};
use crate::{Tx, fault, from_json, json};

struct Row {
    name: String,
    instance_type: Option<String>,
    vcpu: i64,
    memory_mb: i64,
    disk_gb: i64,
    image: String,
    os_image_hash: Option<String>,
    compose_hash: String,
    compose: String,
    encrypted_env: Option<String>,
    env_names: String,
    user_config: Option<String>,
    listed: bool,
    public_logs: Option<bool>,
    public_sysinfo: Option<bool>,
    public_tcbinfo: Option<bool>,
    port_choice: Option<String>,
    shutdown_timeout: Option<i64>,
    allow_force_stop: bool,
}

record!(Row {
    name,
    instance_type,
    vcpu,
    memory_mb,
    disk_gb,
    image,
    os_image_hash,
    compose_hash,
    compose,
    encrypted_env,
    env_names,
    user_config,
    listed,
    public_logs,
    public_sysinfo,
    public_tcbinfo,
    port_choice,
    shutdown_timeout,
    allow_force_stop,
});

/// A revision of a VM, on the ports that the VM has for it.
async fn revision_read(tx: &mut Tx, vm_id: i64, revision: i64) -> Result<Revision, Error> {
    let row: Row = sql::query(
        "SELECT r.name, r.instance_type, r.vcpu, r.memory_mb, r.disk_gb, r.image, r.os_image_hash, r.compose_hash,
                c.content AS compose, r.encrypted_env, r.env_names, r.user_config, r.listed, r.public_logs,
                r.public_sysinfo, r.public_tcbinfo, r.port_choice, r.shutdown_timeout, r.allow_force_stop
         FROM vm_revision r JOIN vm v ON v.id = r.vm_id
         JOIN app_compose c ON c.workspace_id = v.workspace_id AND c.compose_hash = r.compose_hash
         WHERE r.vm_id = $1 AND r.revision = $2",
    )
    .bind(vm_id)
    .bind(revision)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    let port_choice: PortChoice = row.port_choice.as_deref().map(from_json).transpose()?.unwrap_or_default();
    let published = port_choice.published(&published(&row.compose));
    let ports = ports_of(tx, vm_id).await?.into_iter().filter(|p| published.contains(&p.vm_port)).collect();
    Ok(Revision {
        name: row.name,
        instance_type: row.instance_type,
        vcpu: row.vcpu,
        memory_mb: row.memory_mb,
        disk_gb: row.disk_gb,
        image: row.image,
        os_image_hash: row.os_image_hash,
        compose_hash: row.compose_hash,
        compose: row.compose,
        encrypted_env: row.encrypted_env,
        env_names: from_json(&row.env_names)?,
        user_config: row.user_config,
        listed: row.listed,
        visibility: Visibility { logs: row.public_logs, sysinfo: row.public_sysinfo, tcbinfo: row.public_tcbinfo },
        shutdown: Shutdown { timeout_s: row.shutdown_timeout, force: row.allow_force_stop },
        port_choice,
        ports,
    })
}

/// The revision that is in force.
pub async fn revision_in_force(tx: &mut Tx, vm: &Vm) -> Result<Revision, Error> {
    revision_read(tx, vm.id, vm.revision).await
}

/// What an operation's revision changed, as (the one before, its own). `None` for an operation that has no revision.
pub async fn revisions_of(tx: &mut Tx, operation: i64) -> Result<Option<(Revision, Revision)>, Error> {
    let Some(Step { vm_id, revision, from }) = step_of(tx, operation).await? else { return Ok(None) };
    Ok(Some((revision_read(tx, vm_id, from).await?, revision_read(tx, vm_id, revision).await?)))
}

/// From which revision to which an operation leads.
struct Step {
    vm_id: i64,
    revision: i64,
    from: i64,
}

record!(Step { vm_id, revision, from });

async fn step_of(tx: &mut Tx, operation: i64) -> Result<Option<Step>, Error> {
    sql::query(
        "SELECT vm_id, revision, COALESCE(parent, revision) AS \"from\" FROM vm_revision WHERE operation_id = $1",
    )
    .bind(operation)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)
}

/// What an operation changes; `None` when it has no revision or one that changes nothing.
pub(crate) async fn change_of(tx: &mut Tx, operation: i64) -> Result<Option<Change>, Error> {
    Ok(revisions_of(tx, operation).await?.and_then(|(from, to)| Change::between(&from, &to)))
}

/// True while an operation changes what a VM runs, and may still take it back.
pub async fn compose_is_changing(tx: &mut Tx, vm: i64) -> Result<bool, Error> {
    let changing: Option<i64> = sql::query(
        "SELECT r.operation_id FROM operation_resource r
         JOIN vm_revision new ON new.operation_id = r.operation_id AND new.vm_id = r.resource_id
         JOIN vm_revision old ON old.vm_id = new.vm_id AND old.revision = new.parent
         WHERE r.kind = 'vm' AND r.resource_id = $1 AND r.held AND new.compose_hash <> old.compose_hash",
    )
    .bind(vm)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    Ok(changing.is_some())
}

/// Writes down what a create made, as revision 1. Does nothing for a VM that has it.
pub async fn revision_first(tx: &mut Tx, vm_id: i64, operation: Option<i64>, now: Timestamp) -> Result<(), Error> {
    sql::query(
        "INSERT INTO vm_revision (vm_id, revision, parent, operation_id, created_at, name, instance_type, vcpu,
            memory_mb, disk_gb, image, os_image_hash, compose_hash, encrypted_env, env_names, user_config, listed,
            public_logs, public_sysinfo, public_tcbinfo, shutdown_timeout, allow_force_stop)
         SELECT id, revision, NULL, $2, $3, name, instance_type, vcpu, memory_mb, disk_gb, image, os_image_hash,
            compose_hash, encrypted_env, env_names, user_config, listed, public_logs, public_sysinfo, public_tcbinfo,
            shutdown_timeout, allow_force_stop
         FROM vm WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM vm_revision WHERE vm_id = $1)",
    )
    .bind(vm_id)
    .bind(operation)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Adds the revision that an operation asks for, with all that it takes: the larger of both sizes, its ports, its name.
/// Fails with `QuotaExceeded` when the workspace may not have what it takes more, and with `NameTaken` when another app
/// has the name.
pub async fn revision_insert(
    tx: &mut Tx,
    vm: &Vm,
    operation: i64,
    new: &Revision,
    now: Timestamp,
) -> Result<(), Error> {
    let counted = size_counted(tx, vm.id).await?;
    let wanted = Size::of_vm(new.vcpu.max(vm.vcpu), new.memory_mb.max(vm.memory_mb), new.disk_gb.max(vm.disk_gb));
    quota_check(tx, vm.workspace_id, growth(counted, wanted)).await?;
    sql::query(
        "INSERT INTO vm_revision (vm_id, revision, parent, operation_id, created_at, name, instance_type, vcpu,
            memory_mb, disk_gb, image, os_image_hash, compose_hash, encrypted_env, env_names, user_config, listed,
            public_logs, public_sysinfo, public_tcbinfo, shutdown_timeout, allow_force_stop)
         VALUES ($1, (SELECT MAX(revision) + 1 FROM vm_revision WHERE vm_id = $1), $2, $3, $4, $5, $6, $7, $8, $9, $10,
            $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)",
    )
    .bind(vm.id)
    .bind(vm.revision)
    .bind(operation)
    .bind(now.micros())
    .bind(&new.name)
    .bind(&new.instance_type)
    .bind(new.vcpu)
    .bind(new.memory_mb)
    .bind(new.disk_gb)
    .bind(&new.image)
    .bind(&new.os_image_hash)
    .bind(&new.compose_hash)
    .bind(&new.encrypted_env)
    .bind(json(&new.env_names)?)
    .bind(&new.user_config)
    .bind(new.listed)
    .bind(new.visibility.logs)
    .bind(new.visibility.sysinfo)
    .bind(new.visibility.tcbinfo)
    .bind(new.shutdown.timeout_s)
    .bind(new.shutdown.force)
    .execute(tx)
    .await
    .map_err(fault)?;
    reservation_off(tx, vm.id).await?;
    sql::query("UPDATE vm SET held_vcpu = $2, held_memory_mb = $3, held_disk_gb = $4 WHERE id = $1")
        .bind(vm.id)
        .bind(wanted.vcpu)
        .bind(wanted.memory_mb)
        .bind(wanted.disk_gb)
        .execute(tx)
        .await
        .map_err(fault)?;
    reservation_on(tx, vm.id).await?;
    if new.port_choice != PortChoice::default() {
        sql::query("UPDATE vm_revision SET port_choice = $3 WHERE vm_id = $1 AND operation_id = $2")
            .bind(vm.id)
            .bind(operation)
            .bind(json(&new.port_choice)?)
            .execute(tx)
            .await
            .map_err(fault)?;
    }
    for port in &new.ports {
        port_insert(tx, vm, port).await?;
    }
    name_take(tx, vm.workspace_id, vm.app_row, &new.name).await
}

/// What is reserved for a VM that exists.
async fn size_counted(tx: &mut Tx, vm_id: i64) -> Result<Size, Error> {
    sql::query(
        "SELECT 1 AS vm_slots, CASE WHEN held_vcpu > vcpu THEN held_vcpu ELSE vcpu END AS vcpu,
            CASE WHEN held_memory_mb > memory_mb THEN held_memory_mb ELSE memory_mb END AS memory_mb,
            CASE WHEN held_disk_gb > disk_gb THEN held_disk_gb ELSE disk_gb END AS disk_gb
         FROM vm WHERE id = $1",
    )
    .bind(vm_id)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}

/// Takes a host port, unless the VM has it already.
async fn port_insert(tx: &mut Tx, vm: &Vm, port: &PortMapping) -> Result<(), Error> {
    sql::query(
        "INSERT INTO vm_port (node_id, host_port, vm_id, vm_port, protocol, host_address, active)
         SELECT $1, $2, $3, $4, $5, $6, FALSE
         WHERE NOT EXISTS (SELECT 1 FROM vm_port WHERE vm_id = $3 AND vm_port = $4 AND protocol = $5)",
    )
    .bind(vm.node_id)
    .bind(i64::from(port.host_port))
    .bind(vm.id)
    .bind(i64::from(port.vm_port))
    .bind(&port.protocol)
    .bind(&port.host_address)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Puts an operation's revision in force, or the one that it replaced.
pub(crate) async fn revision_apply(tx: &mut Tx, operation: i64, direction: Direction) -> Result<(), Error> {
    let Some(Step { vm_id, revision, from }) = step_of(tx, operation).await? else {
        return Err(Error::internal("an update without its revision"));
    };
    let target = match direction {
        Direction::Forward => revision,
        Direction::Undo => from,
    };
    reservation_off(tx, vm_id).await?;
    sql::query(
        "UPDATE vm SET revision = r.revision, name = r.name, instance_type = r.instance_type, vcpu = r.vcpu,
            memory_mb = r.memory_mb, disk_gb = r.disk_gb, image = r.image, os_image_hash = r.os_image_hash,
            compose_hash = r.compose_hash, encrypted_env = r.encrypted_env, env_names = r.env_names,
            user_config = r.user_config, listed = r.listed, public_logs = r.public_logs,
            public_sysinfo = r.public_sysinfo, public_tcbinfo = r.public_tcbinfo,
            shutdown_timeout = r.shutdown_timeout, allow_force_stop = r.allow_force_stop
         FROM vm_revision r WHERE vm.id = $1 AND r.vm_id = vm.id AND r.revision = $2",
    )
    .bind(vm_id)
    .bind(target)
    .execute(tx)
    .await
    .map_err(fault)?;
    reservation_on(tx, vm_id).await?;
    let ports = revision_read(tx, vm_id, target).await?.ports;
    let mut query = sql::query("UPDATE vm_port SET active = vm_port IN (-1");
    for port in &ports {
        query.push(", ").push_bind(i64::from(port.vm_port));
    }
    query.push(") WHERE vm_id = ").push_bind(vm_id);
    query.execute(tx).await.map(drop).map_err(fault)
}

/// An update is over: what only the revision that is not in force took is given back.
pub(crate) async fn revision_settle(tx: &mut Tx, vm_id: i64) -> Result<(), Error> {
    reservation_off(tx, vm_id).await?;
    for given_back in [
        "UPDATE vm SET held_vcpu = 0, held_memory_mb = 0, held_disk_gb = 0 WHERE id = $1",
        "DELETE FROM vm_port WHERE vm_id = $1 AND NOT active",
    ] {
        sql::query(given_back).bind(vm_id).execute(tx).await.map_err(fault)?;
    }
    reservation_on(tx, vm_id).await?;
    names_drop(tx, vm_id).await
}

/// Ports that app-compose.json publishes; none when it cannot be read any more.
fn published(compose: &str) -> BTreeSet<u16> {
    AppCompose::parse(compose).and_then(|app| app.published()).unwrap_or_default()
}

/// Every host port that the VM has, in force or not, by port inside.
async fn ports_of(tx: &mut Tx, vm_id: i64) -> Result<Vec<PortMapping>, Error> {
    let rows: Vec<(i64, String, String, i64, i64)> = sql::query(
        "SELECT vm_id, protocol, host_address, host_port, vm_port FROM vm_port WHERE vm_id = $1 ORDER BY vm_port",
    )
    .bind(vm_id)
    .fetch_all(&mut **tx)
    .await
    .map_err(fault)?;
    rows.into_iter().map(|row| port_row(row).map(|(_, port)| port)).collect()
}
