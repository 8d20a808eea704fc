//! CVMs as every surface reads them, and the rows a new one is made of.

use holdfast_engine::Plan;
use holdfast_engine::revision::{Shutdown, Visibility};
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::image::ImageInfo;
use holdfast_model::node::VmReport;
use holdfast_model::vm::{PortMapping, RestartPolicy, VmStatus};
use uuid::Uuid;

use crate::nodes::node_images;
use crate::quotas::{Size, quota_check};
use crate::reserved::{reservation_off, reservation_on};
use crate::scope::Scope;
use crate::sql::{self, Query, Session, record};
use crate::tenancy::Principal;
use crate::usage::usage_note;
use crate::{Store, Tx, fault, from_json, json, stored};

/// A CVM with everything the surfaces show of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    pub id: i64,
    pub uuid: String,
    pub workspace_id: i64,
    pub workspace_uuid: String,
    pub workspace_slug: String,
    pub workspace_name: String,
    pub project_id: i64,
    pub project_uuid: String,
    pub app_row: i64,
    /// 40 hex digits.
    pub app_id: String,
    pub app_name: String,
    pub node_id: i64,
    pub node_name: String,
    pub node_region: Option<String>,
    pub node_version: String,
    pub node_publish_address: String,
    pub node_last_seen_at: i64,
    pub created_by: i64,
    pub creator_name: String,
    pub name: String,
    pub instance_id: String,
    status: String,
    pub instance_type: Option<String>,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub image: String,
    pub os_image_hash: Option<String>,
    pub compose_hash: String,
    pub compose: String,
    pub encrypted_env: Option<String>,
    env_names: String,
    pub user_config: Option<String>,
    pub listed: bool,
    /// The revision in force.
    pub revision: i64,
    /// Who may see its logs, system information and measurements. `None`: as app-compose.json says.
    pub public_logs: Option<bool>,
    pub public_sysinfo: Option<bool>,
    pub public_tcbinfo: Option<bool>,
    shutdown_timeout: Option<i64>,
    allow_force_stop: bool,
    /// When it is to be deleted.
    pub scheduled_delete_at: Option<i64>,
    restart_policy: String,
    pub created_at: i64,
    pub updated_at: i64,
    pub deleted_at: Option<i64>,
    report: Option<String>,
    /// The operation that holds the CVM's claim now.
    pub operation_uuid: Option<String>,
    pub operation_type: Option<String>,
    pub operation_target: Option<String>,
    pub operation_created_at: Option<i64>,
}

record!(Vm {
    id,
    uuid,
    workspace_id,
    workspace_uuid,
    workspace_slug,
    workspace_name,
    project_id,
    project_uuid,
    app_row,
    app_id,
    app_name,
    node_id,
    node_name,
    node_region,
    node_version,
    node_publish_address,
    node_last_seen_at,
    created_by,
    creator_name,
    name,
    instance_id,
    status,
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
    revision,
    public_logs,
    public_sysinfo,
    public_tcbinfo,
    shutdown_timeout,
    allow_force_stop,
    scheduled_delete_at,
    restart_policy,
    created_at,
    updated_at,
    deleted_at,
    report,
    operation_uuid,
    operation_type,
    operation_target,
    operation_created_at,
});

impl Vm {
    pub fn status(&self) -> Result<VmStatus, Error> {
        stored(VmStatus::parse(&self.status), "status", &self.status)
    }

    pub fn restart_policy(&self) -> Result<RestartPolicy, Error> {
        stored(RestartPolicy::parse(&self.restart_policy), "restart policy", &self.restart_policy)
    }

    /// How it is shut down.
    pub fn shutdown(&self) -> Shutdown {
        Shutdown { timeout_s: self.shutdown_timeout, force: self.allow_force_stop }
    }

    pub fn env_names(&self) -> Result<Vec<String>, Error> {
        from_json(&self.env_names)
    }

    /// The node's last report.
    pub fn report(&self) -> Result<Option<VmReport>, Error> {
        self.report.as_deref().map(from_json).transpose()
    }

    /// It as the accept of an operation leaves it that nothing is before.
    pub fn accepted(mut self, plan: &Plan, operation: Uuid, now: Timestamp) -> Result<Self, Error> {
        self.operation_target = Some(plan.target_from(self.status()?).as_str().to_owned());
        if self.status != plan.accepted.as_str() {
            self.status = plan.accepted.as_str().to_owned();
            self.updated_at = now.micros();
        }
        self.operation_uuid = Some(operation.to_string());
        self.operation_type = Some(plan.name.to_owned());
        self.operation_created_at = Some(now.micros());
        Ok(self)
    }

    pub fn in_progress(&self) -> bool {
        self.operation_uuid.is_some()
    }
}

const VMS: &str = "SELECT v.id, v.uuid, v.workspace_id, w.uuid AS workspace_uuid, w.slug AS workspace_slug,
        w.name AS workspace_name, v.project_id, p.uuid AS project_uuid, v.app_row, a.app_id, a.name AS app_name, v.node_id,
        n.name AS node_name, n.region AS node_region, n.version AS node_version,
        n.publish_address AS node_publish_address, n.last_seen_at AS node_last_seen_at, v.created_by,
        u.username AS creator_name, v.name, v.instance_id, v.status, v.instance_type, v.vcpu, v.memory_mb, v.disk_gb,
        v.image, v.os_image_hash, v.compose_hash, c.content AS compose, v.encrypted_env, v.env_names, v.user_config,
        v.listed, v.revision, v.public_logs, v.public_sysinfo, v.public_tcbinfo, v.shutdown_timeout, v.allow_force_stop,
        v.scheduled_delete_at, v.restart_policy, v.created_at,
        v.updated_at, v.deleted_at, o.report, op.uuid AS operation_uuid, op.operation_type, op.target_state AS operation_target, op.created_at AS operation_created_at
     FROM vm v
     JOIN workspace w ON w.id = v.workspace_id
     JOIN project p ON p.id = v.project_id
     JOIN app a ON a.id = v.app_row
     JOIN node n ON n.id = v.node_id
     JOIN user_account u ON u.id = v.created_by
     JOIN app_compose c ON c.workspace_id = v.workspace_id AND c.compose_hash = v.compose_hash
     LEFT JOIN vm_observed o ON o.vm_id = v.id
     LEFT JOIN operation_resource r ON r.kind = 'vm' AND r.resource_id = v.id AND r.held
     LEFT JOIN operation op ON op.id = r.operation_id ";

/// Something that happened to a CVM by itself, such as QEMU ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmEvent {
    pub event: String,
    pub body: String,
    pub at: i64,
}

/// How a caller named a CVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By<'a> {
    Key(i64),
    Uuid(&'a str),
    AppId(&'a str),
    InstanceId(&'a str),
    Name(&'a str),
}

/// Which CVMs a list shows.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// `None`: all workspaces, for administrators.
    pub scope: Option<Scope>,
    pub app_rows: Option<&'a [i64]>,
    pub node_id: Option<i64>,
    pub user_id: Option<i64>,
    pub uuids: Option<&'a [String]>,
}

impl Filter<'_> {
    fn push(&self, query: &mut Query) {
        query.push(" WHERE v.deleted_at IS NULL");
        if let Some(scope) = &self.scope {
            query.push(" AND ");
            scope.push(query, "v");
        }
        for (column, value) in [(" AND v.node_id = ", self.node_id), (" AND v.created_by = ", self.user_id)] {
            if let Some(value) = value {
                query.push(column).push_bind(value);
            }
        }
        if let Some(rows) = self.app_rows {
            query.push(" AND v.app_row IN (").push_list(rows.iter().copied()).push(")");
        }
        if let Some(uuids) = self.uuids {
            query.push(" AND v.uuid IN (").push_list(uuids.iter().cloned()).push(")");
        }
    }

    /// The query of a page, newest first.
    fn page(&self, limit: i64, offset: i64) -> Query {
        let mut query = sql::query(VMS);
        self.push(&mut query);
        query.push(" ORDER BY v.id DESC LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
        query
    }
}

impl Store {
    /// CVMs of a scope that `by` names: ids resolve for ever, names and app ids only while the CVM lives. At most
    /// two, which is enough to know that a name is ambiguous.
    pub async fn vms_by(&self, scope: &Scope, by: By<'_>) -> Result<Vec<Vm>, Error> {
        let mut query = sql::query(VMS);
        query.push("WHERE ");
        scope.push(&mut query, "v");
        match by {
            By::Key(id) => query.push(" AND v.id = ").push_bind(id),
            By::Uuid(uuid) => query.push(" AND v.uuid = ").push_bind(uuid.to_owned()),
            By::InstanceId(id) => query.push(" AND v.instance_id = ").push_bind(id.to_owned()),
            By::AppId(id) => query.push(" AND v.deleted_at IS NULL AND a.app_id = ").push_bind(id.to_owned()),
            By::Name(name) => query.push(" AND v.deleted_at IS NULL AND v.name = ").push_bind(name.to_owned()),
        };
        query.push(" ORDER BY v.id LIMIT 2");
        self.read().here(|db| db.all(&query))
    }

    /// The CVM with this internal key, whatever workspace it is in. For callers that checked permission otherwise.
    pub async fn vm(&self, id: i64) -> Result<Option<Vm>, Error> {
        let mut query = sql::query(VMS);
        query.push("WHERE v.id = ").push_bind(id);
        self.read().here(|db| db.first(&query))
    }

    /// Living CVMs, newest first.
    pub async fn vms(&self, filter: &Filter<'_>, limit: i64, offset: i64) -> Result<Vec<Vm>, Error> {
        let query = filter.page(limit, offset);
        self.read().aside(move |db| db.all(&query)).await
    }

    /// The same, and how many there are in all.
    pub async fn vms_page(&self, filter: &Filter<'_>, limit: i64, offset: i64) -> Result<(Vec<Vm>, i64), Error> {
        let mut count = sql::query("SELECT COUNT(*) FROM vm v");
        filter.push(&mut count);
        let query = filter.page(limit, offset);
        let reading = self.read().aside(move |db| {
            let (total,) = db.one(&count)?;
            Ok((db.all(&query)?, total))
        });
        reading.await
    }

    /// The VM as it stands inside a transaction that is about to change it.
    pub async fn vm_in(tx: &mut Tx, id: i64) -> Result<Vm, Error> {
        let mut query = sql::query(VMS);
        query.push("WHERE v.id = ").push_bind(id);
        query.fetch_one(&mut **tx).await.map_err(fault)
    }

    /// Published ports of these CVMs in force, as (CVM, mapping), in order of the port inside.
    pub async fn vm_ports(&self, vms: &[i64]) -> Result<Vec<(i64, PortMapping)>, Error> {
        let vms = vms.to_vec();
        self.read().by_keys(vms.len(), move |db| ports_of(db, &vms)).await
    }

    /// What belongs to these CVMs, which lie on these nodes.
    pub async fn vm_parts(&self, vms: Vec<i64>, nodes: Vec<i64>) -> Result<VmParts, Error> {
        let reading = self
            .read()
            .by_keys(vms.len(), move |db| Ok(VmParts { ports: ports_of(db, &vms)?, images: node_images(db, &nodes)? }));
        reading.await
    }

    /// What happened to these CVMs outside of their operations, as (CVM, event), newest last, at most 20 of each.
    pub async fn vm_events(&self, vms: Vec<i64>) -> Result<Vec<(i64, VmEvent)>, Error> {
        let reading = self.read().by_keys(vms.len(), move |db| {
            let mut events = Vec::new();
            for chunk in vms.chunks(AT_ONCE) {
                let mut query = sql::query(
                    "SELECT vm_id, event, body, at FROM (SELECT id, vm_id, event, body, at,
                        ROW_NUMBER() OVER (PARTITION BY vm_id ORDER BY id DESC) AS age FROM vm_event WHERE vm_id IN (",
                );
                query.push_list(chunk.iter().copied()).push(")) AS newest WHERE age <= 20 ORDER BY vm_id, id");
                let rows = db.all(&query)?.into_iter();
                events.extend(rows.map(|(vm, event, body, at)| (vm, VmEvent { event, body, at })));
            }
            Ok(events)
        });
        reading.await
    }
}

/// What belongs to some CVMs and their nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VmParts {
    /// Published ports in force, as (CVM, mapping), in order of the port inside.
    pub ports: Vec<(i64, PortMapping)>,
    /// What each node offers to boot.
    pub images: Vec<(i64, Vec<ImageInfo>)>,
}

/// Keys in one query.
const AT_ONCE: usize = 500;

fn ports_of(db: &Session, vms: &[i64]) -> Result<Vec<(i64, PortMapping)>, Error> {
    let mut ports = Vec::new();
    for chunk in vms.chunks(AT_ONCE) {
        let mut query = sql::query(
            "SELECT vm_id, protocol, host_address, host_port, vm_port FROM vm_port
             WHERE active AND vm_id IN (",
        );
        query.push_list(chunk.iter().copied()).push(") ORDER BY vm_id, vm_port");
        for row in db.all(&query)? {
            ports.push(port_row(row)?);
        }
    }
    Ok(ports)
}

pub(crate) fn port_row(row: (i64, String, String, i64, i64)) -> Result<(i64, PortMapping), Error> {
    let (vm, protocol, host_address, host_port, vm_port) = row;
    let port = |n: i64| u16::try_from(n).map_err(Error::internal);
    Ok((vm, PortMapping { protocol, host_address, host_port: port(host_port)?, vm_port: port(vm_port)? }))
}

/// The rows of a new CVM.
#[derive(Debug, Clone)]
pub struct NewVm {
    pub uuid: String,
    pub app_row: i64,
    pub node_id: i64,
    pub name: String,
    pub instance_id: String,
    pub instance_type: Option<String>,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub image: String,
    pub os_image_hash: Option<String>,
    pub compose_hash: String,
    pub encrypted_env: Option<String>,
    pub env_names: Vec<String>,
    pub user_config: Option<String>,
    pub listed: bool,
    pub restart_policy: RestartPolicy,
    pub visibility: Visibility,
    pub shutdown: Shutdown,
    pub ports: Vec<PortMapping>,
}

/// Inserts a CVM with its name and ports, in the project of its app. Fails with `QuotaExceeded` when the workspace may not have it, and with
/// `NameTaken` when another app has the name.
pub async fn vm_insert(
    tx: &mut Tx,
    who: &Principal,
    new: &NewVm,
    status: VmStatus,
    now: Timestamp,
) -> Result<i64, Error> {
    quota_check(tx, who.workspace_id, Size::of_vm(new.vcpu, new.memory_mb, new.disk_gb)).await?;
    name_take(tx, who.workspace_id, new.app_row, &new.name).await?;
    let id: i64 = sql::query(
        "INSERT INTO vm (uuid, workspace_id, project_id, app_row, node_id, created_by, name, instance_id, status,
            instance_type, vcpu, memory_mb, disk_gb, image, os_image_hash, compose_hash, encrypted_env, env_names,
            user_config, listed, restart_policy, created_at, updated_at, public_logs, public_sysinfo, public_tcbinfo,
            shutdown_timeout, allow_force_stop)
         VALUES ($1, $2, (SELECT project_id FROM app WHERE id = $3), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
            $15, $16, $17, $18, $19, $20, $21, $21, $22, $23, $24, $25, $26)
         RETURNING id",
    )
    .bind(&new.uuid)
    .bind(who.workspace_id)
    .bind(new.app_row)
    .bind(new.node_id)
    .bind(who.user_id)
    .bind(&new.name)
    .bind(&new.instance_id)
    .bind(status.as_str())
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
    .bind(new.restart_policy.as_str())
    .bind(now.micros())
    .bind(new.visibility.logs)
    .bind(new.visibility.sysinfo)
    .bind(new.visibility.tcbinfo)
    .bind(new.shutdown.timeout_s)
    .bind(new.shutdown.force)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    for port in &new.ports {
        sql::query(
            "INSERT INTO vm_port (node_id, host_port, vm_id, vm_port, protocol, host_address)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(new.node_id)
        .bind(i64::from(port.host_port))
        .bind(id)
        .bind(i64::from(port.vm_port))
        .bind(&port.protocol)
        .bind(&port.host_address)
        .execute(tx)
        .await
        .map_err(fault)?;
    }
    reservation_on(tx, id).await?;
    Ok(id)
}

/// Takes a name for an app, unless the app has it already. Fails with `NameTaken` when another app has it.
pub(crate) async fn name_take(tx: &mut Tx, workspace: i64, app_row: i64, name: &str) -> Result<(), Error> {
    let taken =
        sql::query("INSERT INTO vm_name (workspace_id, name, app_row) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(workspace)
            .bind(name)
            .bind(app_row)
            .execute(tx)
            .await
            .map_err(fault)?;
    if taken == 1 {
        return Ok(());
    }
    let holder: i64 = sql::query("SELECT app_row FROM vm_name WHERE workspace_id = $1 AND name = $2")
        .bind(workspace)
        .bind(name)
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)?;
    if holder == app_row { Ok(()) } else { Err(name_taken(name)) }
}

/// The refusal of a name that another app of the workspace has.
pub fn name_taken(name: &str) -> Error {
    Error::new(Code::NameTaken, format!("A CVM named \"{name}\" exists already in this workspace."))
}

/// Host ports of a node that are taken, of those between two; in order.
pub async fn ports_taken(tx: &mut Tx, node_id: i64, (first, last): (i64, i64)) -> Result<Vec<i64>, Error> {
    sql::query("SELECT host_port FROM vm_port WHERE node_id = $1 AND host_port BETWEEN $2 AND $3 ORDER BY host_port")
        .bind(node_id)
        .bind(first)
        .bind(last)
        .fetch_all(&mut **tx)
        .await
        .map_err(fault)
}

/// The living CVM of an app, inside a transaction: (row, compose hash).
pub async fn vm_of_app(tx: &mut Tx, app_row: i64) -> Result<Option<(i64, String)>, Error> {
    sql::query("SELECT id, compose_hash FROM vm WHERE app_row = $1 AND deleted_at IS NULL ORDER BY id LIMIT 1")
        .bind(app_row)
        .fetch_optional(&mut **tx)
        .await
        .map_err(fault)
}

/// Writes a CVM's status.
pub(crate) async fn vm_set_status(tx: &mut Tx, id: i64, status: VmStatus, now: Timestamp) -> Result<(), Error> {
    sql::query("UPDATE vm SET status = $2, updated_at = $3 WHERE id = $1")
        .bind(id)
        .bind(status.as_str())
        .bind(now.micros())
        .execute(tx)
        .await
        .map_err(fault)?;
    usage_note(tx, id, status, now).await
}

/// Ends a CVM's life: ports and name are free, capacity counts no more. Called when its node has nothing left of it, so
/// the tombstone goes too. Its row stays for its operations; the ciphertext of its env goes.
pub(crate) async fn vm_release(tx: &mut Tx, id: i64, now: Timestamp) -> Result<(), Error> {
    for held in [
        "DELETE FROM vm_port WHERE vm_id = $1",
        "DELETE FROM vm_desired WHERE vm_id = $1",
        "DELETE FROM vm_observed WHERE vm_id = $1",
        "UPDATE vm_revision SET encrypted_env = NULL WHERE vm_id = $1",
    ] {
        sql::query(held).bind(id).execute(tx).await.map_err(fault)?;
    }
    reservation_off(tx, id).await?;
    sql::query(
        "UPDATE vm SET status = 'deleted', deleted_at = $2, updated_at = $2, encrypted_env = NULL, scheduled_delete_at = NULL,
            scheduled_delete_by = NULL WHERE id = $1 AND deleted_at IS NULL",
    )
    .bind(id)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    names_drop(tx, id).await
}

/// Gives back the names of a CVM's app that none of its living CVMs carries.
pub(crate) async fn names_drop(tx: &mut Tx, id: i64) -> Result<(), Error> {
    sql::query(
        "DELETE FROM vm_name WHERE app_row = (SELECT app_row FROM vm WHERE id = $1)
         AND NOT EXISTS (SELECT 1 FROM vm v
             WHERE v.app_row = vm_name.app_row AND v.name = vm_name.name AND v.deleted_at IS NULL)",
    )
    .bind(id)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}
