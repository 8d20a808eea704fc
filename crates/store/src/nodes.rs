//! Nodes: who they are, what they have, and whether they are there.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::image::ImageInfo;
use holdfast_model::node::{Health, Register};
use uuid::Uuid;

use crate::sql::{self, Session, record};
use crate::{Store, Tx, fault, from_json, json};

/// A node as the database has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub id: i64,
    pub uuid: String,
    pub name: String,
    pub region: Option<String>,
    pub version: String,
    pub hypervisor: String,
    pub hypervisor_version: String,
    pub accelerator: String,
    pub tee: bool,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub slots: i64,
    pub disk_free_gb: i64,
    pub publish_address: String,
    pub port_first: i64,
    pub port_last: i64,
    /// JSON; see [`Node::images`].
    images: String,
    pub ready: bool,
    pub reason: Option<String>,
    pub cordoned: bool,
    pub last_seen_at: i64,
    pub created_at: i64,
    // What VMs on it have reserved; see `reserved.rs`.
    pub used_vcpu: i64,
    pub used_memory_mb: i64,
    pub used_disk_gb: i64,
    pub used_slots: i64,
}

record!(Node {
    id,
    uuid,
    name,
    region,
    version,
    hypervisor,
    hypervisor_version,
    accelerator,
    tee,
    vcpu,
    memory_mb,
    disk_gb,
    slots,
    disk_free_gb,
    publish_address,
    port_first,
    port_last,
    images,
    ready,
    reason,
    cordoned,
    last_seen_at,
    created_at,
    used_vcpu,
    used_memory_mb,
    used_disk_gb,
    used_slots,
});

impl Node {
    pub fn images(&self) -> Result<Vec<ImageInfo>, Error> {
        from_json(&self.images)
    }

    /// Counts what a VM would take; what it would give back is negative.
    pub fn reserve(&mut self, vcpu: i64, memory_mb: i64, disk_gb: i64, slots: i64) {
        self.used_vcpu += vcpu;
        self.used_memory_mb += memory_mb;
        self.used_disk_gb += disk_gb;
        self.used_slots += slots;
    }

    /// Heard of within `patience` microseconds before `now`.
    pub fn is_online(&self, now: Timestamp, patience: i64) -> bool {
        self.last_seen_at >= now.micros() - patience
    }
}

const NODES: &str = "SELECT id, uuid, name, region, version, hypervisor, hypervisor_version, accelerator, tee, vcpu,
        memory_mb, disk_gb, slots, disk_free_gb, publish_address, port_first, port_last, images, ready, reason, cordoned,
        last_seen_at, created_at, used_vcpu, used_memory_mb, used_disk_gb, used_slots
     FROM node ORDER BY id";

/// What each of these nodes offers to boot.
pub(crate) fn node_images(db: &Session, nodes: &[i64]) -> Result<Vec<(i64, Vec<ImageInfo>)>, Error> {
    let mut query = sql::query("SELECT id, images FROM node WHERE id IN (");
    query.push_list(nodes.iter().copied()).push(")");
    let rows: Vec<(i64, String)> = db.all(&query)?;
    rows.into_iter().map(|(id, images)| Ok((id, from_json(&images)?))).collect()
}

impl Store {
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        sql::query(NODES).fetch_all(self.read()).await.map_err(fault)
    }

    /// The token with this sha256, unless it was revoked.
    pub async fn node_token(&self, hash: &str) -> Result<Option<i64>, Error> {
        sql::query("SELECT id FROM node_token WHERE hash = $1 AND revoked_at IS NULL")
            .bind(hash)
            .fetch_optional(self.by_key())
            .await
            .map_err(fault)
    }

    /// The node behind a token that was not revoked, while `session` is its current life.
    pub async fn node_session(&self, token_id: i64, session: Uuid) -> Result<i64, Error> {
        sql::query(
            "SELECT n.id FROM node n JOIN node_token t ON t.id = n.token_id AND t.revoked_at IS NULL
             WHERE n.token_id = $1 AND n.session = $2",
        )
        .bind(token_id)
        .bind(session.to_string())
        .fetch_optional(self.by_key())
        .await
        .map_err(fault)?
        .ok_or_else(|| Error::new(Code::SessionStale, "This session is not the node's current one."))
    }

    /// The VM's node-side facts that a node asks keys with: (app id, instance id), only if it is placed there and
    /// should not be gone.
    pub async fn node_vm_ids(&self, token_id: i64, vm_uuid: &str) -> Result<Option<(String, String)>, Error> {
        sql::query(
            "SELECT a.app_id, v.instance_id FROM vm v JOIN app a ON a.id = v.app_row JOIN node n ON n.id = v.node_id
             JOIN vm_desired d ON d.vm_id = v.id AND d.run_state <> 'absent'
             WHERE n.token_id = $1 AND v.uuid = $2 AND v.deleted_at IS NULL",
        )
        .bind(token_id)
        .bind(vm_uuid)
        .fetch_optional(self.by_key())
        .await
        .map_err(fault)
    }
}

/// The nodes inside a write transaction: what placement decides on cannot change before its commit.
pub async fn nodes_for_placement(tx: &mut Tx) -> Result<Vec<Node>, Error> {
    sql::query(NODES).fetch_all(&mut **tx).await.map_err(fault)
}

pub async fn node_token_create(tx: &mut Tx, name: &str, hash: &str, now: Timestamp) -> Result<i64, Error> {
    sql::query("INSERT INTO node_token (hash, name, created_at) VALUES ($1, $2, $3) RETURNING id")
        .bind(hash)
        .bind(name)
        .bind(now.micros())
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}

/// Begins a new life of the node that holds the token: a token is one node, whatever it calls itself. A registration of
/// the same life that comes late or twice does not make its old reports count as new.
pub async fn node_register(tx: &mut Tx, token_id: i64, hello: &Register, now: Timestamp) -> Result<(i64, Uuid), Error> {
    let uuid = Uuid::new_v4().to_string();
    let c = &hello.capacity;
    let (id, uuid): (i64, String) = sql::query(
        "INSERT INTO node (uuid, token_id, name, region, version, hypervisor, hypervisor_version, accelerator, tee,
            boot_id, session, report_seq, vcpu, memory_mb, disk_gb, slots, disk_free_gb, publish_address, port_first,
            port_last, images, ready, reason, cordoned, desired_revision, last_seen_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12, $13, $14, $15, $14, $16, $17, $18, $19, FALSE,
            'it has only just registered', FALSE, 1, $20, $20)
         ON CONFLICT (token_id) DO UPDATE SET name = excluded.name, region = excluded.region,
            version = excluded.version, hypervisor = excluded.hypervisor,
            hypervisor_version = excluded.hypervisor_version, accelerator = excluded.accelerator, tee = excluded.tee,
            boot_id = excluded.boot_id, session = excluded.session,
            report_seq = CASE WHEN node.session = excluded.session THEN node.report_seq ELSE 0 END, vcpu = excluded.vcpu,
            memory_mb = excluded.memory_mb, disk_gb = excluded.disk_gb, slots = excluded.slots,
            publish_address = excluded.publish_address, port_first = excluded.port_first,
            port_last = excluded.port_last, images = excluded.images, ready = FALSE, reason = excluded.reason,
            last_seen_at = excluded.last_seen_at
         RETURNING id, uuid",
    )
    .bind(&uuid)
    .bind(token_id)
    .bind(&hello.name)
    .bind(&hello.region)
    .bind(&hello.version)
    .bind(&hello.hypervisor)
    .bind(&hello.hypervisor_version)
    .bind(hello.accelerator.as_str())
    .bind(hello.tee)
    .bind(&hello.boot_id)
    .bind(hello.session.to_string())
    .bind(i64::from(c.vcpu))
    .bind(column(c.memory_mb))
    .bind(column(c.disk_gb))
    .bind(i64::from(c.slots))
    .bind(&hello.publish_address)
    .bind(i64::from(hello.port_range.0))
    .bind(i64::from(hello.port_range.1))
    .bind(json(&hello.images)?)
    .bind(now.micros())
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    Ok((id, uuid.parse().map_err(Error::internal)?))
}

/// Takes note of a report. False when a newer one of the session is known, so that this one must change nothing.
pub async fn node_seen(
    tx: &mut Tx,
    node_id: i64,
    seq: u64,
    health: &Health,
    images: &[ImageInfo],
    now: Timestamp,
) -> Result<bool, Error> {
    let updated = sql::query(
        "UPDATE node SET report_seq = $2, disk_free_gb = $3, ready = $4, reason = $5, images = $6, last_seen_at = $7
         WHERE id = $1 AND report_seq < $2",
    )
    .bind(node_id)
    .bind(column(seq))
    .bind(column(health.disk_free_gb))
    .bind(health.ready)
    .bind(&health.reason)
    .bind(json(&images)?)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    Ok(updated == 1)
}

/// An unsigned number as the database keeps it.
pub(crate) fn column(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
