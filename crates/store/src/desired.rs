//! Desired state on its way to nodes, and their reports on the way back.
//!
//! The one rule: each change of desired state on a node raises that node's revision in the same transaction, so a node
//! that asks for everything newer than the revision it knows misses nothing, however often it asks.

use std::collections::HashMap;

use holdfast_engine::{Desired, DesiredChange};
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::node::{DesiredPage, DesiredVm, Phase, VmReport};
use holdfast_model::vm::{RestartPolicy, RunState, StopMode, VmSpec, VmStatus};

use crate::nodes::column;
use crate::sql::{self, record};
use crate::vms::{vm_release, vm_set_status};
use crate::{Store, Tx, fault, from_json, json, stored};

struct DesiredRow {
    vm_id: i64,
    uuid: String,
    generation: i64,
    run_state: String,
    stop: String,
    boot_epoch: i64,
    name: String,
    app_id: String,
    instance_id: String,
    image: String,
    vcpu: i64,
    memory_mb: i64,
    disk_gb: i64,
    compose_hash: String,
    compose: String,
    encrypted_env: Option<String>,
    user_config: Option<String>,
    restart_policy: String,
}

record!(DesiredRow {
    vm_id,
    uuid,
    generation,
    run_state,
    stop,
    boot_epoch,
    name,
    app_id,
    instance_id,
    image,
    vcpu,
    memory_mb,
    disk_gb,
    compose_hash,
    compose,
    encrypted_env,
    user_config,
    restart_policy,
});

impl Store {
    /// The node's current revision: cheap to ask, so that a long poll can.
    pub async fn desired_revision(&self, node_id: i64) -> Result<u64, Error> {
        let revision: i64 = sql::query("SELECT desired_revision FROM node WHERE id = $1")
            .bind(node_id)
            .fetch_one(self.by_key())
            .await
            .map_err(fault)?;
        Ok(revision.unsigned_abs())
    }

    /// Everything of this node that is newer than `since`.
    pub async fn desired_page(&self, node_id: i64, since: u64) -> Result<DesiredPage, Error> {
        // The revision is read first: a change that commits in between is sent now and again next time, never missed.
        let revision = self.desired_revision(node_id).await?;
        let rows: Vec<DesiredRow> = sql::query(
            "SELECT d.vm_id, v.uuid, d.generation, d.run_state, d.stop, d.boot_epoch, v.name, a.app_id, v.instance_id,
                    v.image, v.vcpu, v.memory_mb, v.disk_gb, v.compose_hash, c.content AS compose, v.encrypted_env,
                    v.user_config, v.restart_policy
             FROM vm_desired d JOIN vm v ON v.id = d.vm_id JOIN app a ON a.id = v.app_row
             JOIN app_compose c ON c.workspace_id = v.workspace_id AND c.compose_hash = v.compose_hash
             WHERE d.node_id = $1 AND d.revision > $2 ORDER BY d.revision",
        )
        .bind(node_id)
        .bind(column(since))
        .fetch_all(self.read())
        .await
        .map_err(fault)?;
        let ids: Vec<i64> = rows.iter().map(|r| r.vm_id).collect();
        let mut ports: HashMap<i64, Vec<_>> = HashMap::new();
        for chunk in ids.chunks(500) {
            for (vm, port) in self.vm_ports(chunk).await? {
                ports.entry(vm).or_default().push(port);
            }
        }
        let vms = rows.into_iter().map(|row| {
            let ports = ports.remove(&row.vm_id).unwrap_or_default();
            desired_vm(row, ports)
        });
        Ok(DesiredPage { revision, vms: vms.collect::<Result<_, _>>()? })
    }
}

fn desired_vm(row: DesiredRow, ports: Vec<holdfast_model::vm::PortMapping>) -> Result<DesiredVm, Error> {
    let uuid = row.uuid.parse().map_err(Error::internal)?;
    let run_state = stored(RunState::parse(&row.run_state), "run state", &row.run_state)?;
    let spec = VmSpec {
        uuid,
        name: row.name,
        app_id: row.app_id,
        instance_id: row.instance_id,
        image: row.image,
        vcpu: u32::try_from(row.vcpu).map_err(Error::internal)?,
        memory_mb: row.memory_mb.unsigned_abs(),
        disk_gb: row.disk_gb.unsigned_abs(),
        ports,
        compose_hash: row.compose_hash,
        app_compose: row.compose,
        encrypted_env: row.encrypted_env,
        user_config: row.user_config,
        restart_policy: stored(RestartPolicy::parse(&row.restart_policy), "restart policy", &row.restart_policy)?,
    };
    Ok(DesiredVm {
        uuid,
        generation: row.generation.unsigned_abs(),
        run_state,
        stop: from_json(&row.stop)?,
        boot_epoch: row.boot_epoch.unsigned_abs(),
        spec: (run_state != RunState::Absent).then_some(spec),
    })
}

/// Writes desired state under a new revision of the node.
pub(crate) async fn desired_write(
    tx: &mut Tx,
    vm_id: i64,
    change: &DesiredChange,
    stop: StopMode,
    now: Timestamp,
) -> Result<(), Error> {
    let (node_id, revision): (i64, i64) = sql::query(
        "UPDATE node SET desired_revision = desired_revision + 1
         WHERE id = (SELECT node_id FROM vm WHERE id = $1) RETURNING id, desired_revision",
    )
    .bind(vm_id)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    sql::query(
        "INSERT INTO vm_desired (vm_id, node_id, generation, revision, run_state, stop, boot_epoch, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (vm_id) DO UPDATE SET node_id = excluded.node_id, generation = excluded.generation,
            revision = excluded.revision, run_state = excluded.run_state, stop = excluded.stop,
            boot_epoch = excluded.boot_epoch, updated_at = excluded.updated_at",
    )
    .bind(vm_id)
    .bind(node_id)
    .bind(column(change.generation))
    .bind(revision)
    .bind(change.run_state.as_str())
    .bind(json(&stop)?)
    .bind(column(change.boot_epoch))
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// What the engine needs of a VM's row of `vm_desired`, which may be missing.
pub(crate) fn desired(
    generation: Option<i64>,
    run_state: Option<&str>,
    boot_epoch: Option<i64>,
) -> Result<Option<Desired>, Error> {
    let (Some(generation), Some(run_state), Some(epoch)) = (generation, run_state, boot_epoch) else { return Ok(None) };
    Ok(Some(Desired {
        generation: generation.unsigned_abs(),
        run_state: stored(RunState::parse(run_state), "run state", run_state)?,
        boot_epoch: epoch.unsigned_abs(),
    }))
}

pub(crate) async fn desired_of(tx: &mut Tx, vm_id: i64) -> Result<Option<Desired>, Error> {
    let row: Option<(Option<i64>, Option<String>, Option<i64>)> =
        sql::query("SELECT generation, run_state, boot_epoch FROM vm_desired WHERE vm_id = $1")
            .bind(vm_id)
            .fetch_optional(&mut **tx)
            .await
            .map_err(fault)?;
    row.map_or(Ok(None), |(generation, run_state, epoch)| desired(generation, run_state.as_deref(), epoch))
}

/// Whether the VM should run; `None` before its create has begun.
pub async fn run_state(tx: &mut Tx, vm_id: i64) -> Result<Option<RunState>, Error> {
    Ok(desired_of(tx, vm_id).await?.map(|d| d.run_state))
}

/// True when the VM was asked to go and has not gone yet: nothing but another delete can be asked of it.
pub async fn vm_is_leaving(tx: &mut Tx, vm_id: i64) -> Result<bool, Error> {
    Ok(desired_of(tx, vm_id).await?.is_some_and(|d| d.run_state == RunState::Absent))
}

pub(crate) async fn report_of(tx: &mut Tx, vm_id: i64) -> Result<Option<VmReport>, Error> {
    let row: Option<String> = sql::query("SELECT report FROM vm_observed WHERE vm_id = $1")
        .bind(vm_id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(fault)?;
    row.as_deref().map(from_json).transpose()
}

struct KnownVm {
    id: i64,
    uuid: String,
    status: String,
    deleted: bool,
    claimed: bool,
    /// The last one.
    report: Option<String>,
}

record!(KnownVm { id, uuid, status, deleted, claimed, report });

/// Takes in what a node says of its VMs. An operation that waits for a VM is woken; a VM without one gets the status
/// that what was seen amounts to. Returns whether any operation was woken.
pub async fn reports_write(tx: &mut Tx, node_id: i64, reports: &[VmReport], now: Timestamp) -> Result<bool, Error> {
    let mut woken = false;
    // Chunked: a query takes a bounded number of parameters.
    for chunk in reports.chunks(200) {
        let mut query = sql::query(
            "SELECT v.id, v.uuid, v.status, v.deleted_at IS NOT NULL AS deleted, EXISTS (SELECT 1
                FROM operation_resource r WHERE r.kind = 'vm' AND r.resource_id = v.id AND r.held) AS claimed, s.report
             FROM vm v LEFT JOIN vm_observed s ON s.vm_id = v.id WHERE v.node_id = ",
        );
        query.push_bind(node_id).push(" AND v.uuid IN (");
        query.push_list(chunk.iter().map(|report| report.uuid.to_string())).push(")");
        let known: Vec<KnownVm> = query.fetch_all(&mut **tx).await.map_err(fault)?;
        let known: HashMap<&str, &KnownVm> = known.iter().map(|vm| (vm.uuid.as_str(), vm)).collect();
        for report in chunk {
            let Some(vm) = known.get(report.uuid.to_string().as_str()) else {
                tracing::warn!(node = node_id, vm = %report.uuid, "report of a VM that is not placed on this node");
                continue;
            };
            woken |= report_write(tx, vm, report, now).await?;
        }
    }
    Ok(woken)
}

async fn report_write(tx: &mut Tx, vm: &KnownVm, report: &VmReport, now: Timestamp) -> Result<bool, Error> {
    if vm.deleted {
        return Ok(false);
    }
    let before: Option<VmReport> = vm.report.as_deref().map(from_json).transpose()?;
    sql::query(
        "INSERT INTO vm_observed (vm_id, generation, phase, boot_epoch, restarts, report, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (vm_id) DO UPDATE SET generation = excluded.generation, phase = excluded.phase,
            boot_epoch = excluded.boot_epoch, restarts = excluded.restarts, report = excluded.report,
            updated_at = excluded.updated_at",
    )
    .bind(vm.id)
    .bind(column(report.generation))
    .bind(report.phase.as_str())
    .bind(column(report.boot_epoch))
    .bind(i64::from(report.restarts))
    .bind(json(report)?)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    let before = before.as_ref();
    if report.phase == Phase::Exited && before.is_none_or(|b| b.phase != Phase::Exited) {
        let body = report.exit_reason.as_deref().unwrap_or("the VM ended by itself");
        vm_event_insert(tx, vm.id, "instance.exited", body, now).await?;
    }
    let paused = before.is_some_and(|b| b.paused.is_some());
    if report.paused.is_some() && !paused {
        let body = "it stands still: the disk of its node is full; it goes on when there is room";
        vm_event_insert(tx, vm.id, "instance.paused", body, now).await?;
    }
    // One that ended, or was started anew, did not go on.
    let same = before.is_some_and(|b| (b.boot_epoch, b.restarts) == (report.boot_epoch, report.restarts));
    if paused && same && report.paused.is_none() && report.phase == Phase::Running {
        vm_event_insert(tx, vm.id, "instance.resumed", "it goes on: there is room again", now).await?;
    }
    if before.is_some_and(|b| b.boot_epoch == report.boot_epoch && b.restarts < report.restarts) {
        let body = format!("automatic restart {} of {}", report.restarts, RestartPolicy::MAX_RESTARTS);
        vm_event_insert(tx, vm.id, "instance.auto_restart", &body, now).await?;
    }
    if vm.claimed {
        sql::query(
            "UPDATE operation SET wake_at = $2 WHERE wake_at IS NOT NULL AND id = (SELECT operation_id
                FROM operation_resource WHERE kind = 'vm' AND resource_id = $1 AND held)",
        )
        .bind(vm.id)
        .bind(now.micros())
        .execute(tx)
        .await
        .map_err(fault)?;
        return Ok(true);
    }
    let Some(desired) = desired_of(tx, vm.id).await? else { return Ok(false) };
    if desired.run_state == RunState::Absent {
        if report.phase == Phase::Absent && report.generation >= desired.generation {
            vm_release(tx, vm.id, now).await?;
        }
        return Ok(false);
    }
    let status = stored(VmStatus::parse(&vm.status), "status", &vm.status)?;
    let seen = holdfast_engine::status_of(status, &desired, report);
    if seen != status {
        vm_set_status(tx, vm.id, seen, now).await?;
    }
    Ok(false)
}

async fn vm_event_insert(tx: &mut Tx, vm: i64, event: &str, body: &str, now: Timestamp) -> Result<(), Error> {
    sql::query("INSERT INTO vm_event (vm_id, event, body, at) VALUES ($1, $2, $3, $4)")
        .bind(vm)
        .bind(event)
        .bind(body)
        .bind(now.micros())
        .execute(tx)
        .await
        .map_err(fault)?;
    sql::query("DELETE FROM vm_event WHERE vm_id = $1 AND id <= (SELECT MAX(id) FROM vm_event WHERE vm_id = $1) - 1000")
        .bind(vm)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}
