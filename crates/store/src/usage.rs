//! How long CVMs ran, and how large they were meanwhile.
//!
//! The one rule: what is written is a change and nothing else. A status on the way to another one (starting, stopping,
//! updating) counts like the one before it, so it writes nothing; and a CVM that stays as it is adds no row.

use std::collections::HashMap;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::vm::VmStatus;

use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// From `at` on a CVM was like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub vm_id: i64,
    pub at: i64,
    /// Its app was up.
    pub running: bool,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
}

record!(Mark { vm_id, at, running, vcpu, memory_mb, disk_gb });

/// A CVM of an app, living or not, for as long as it was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub id: i64,
    pub uuid: String,
    pub instance_id: String,
    /// GB, as long as nothing else is written down.
    pub disk_gb: i64,
    pub created_at: i64,
    pub deleted_at: Option<i64>,
}

record!(Life { id, uuid, instance_id, disk_gb, created_at, deleted_at });

impl Store {
    /// Every CVM that an app ever had and that was there between two moments, oldest first.
    pub async fn app_lives(&self, app_row: i64, from: Timestamp, to: Timestamp) -> Result<Vec<Life>, Error> {
        sql::query(
            "SELECT id, uuid, instance_id, disk_gb, created_at, deleted_at FROM vm
             WHERE app_row = $1 AND created_at < $3 AND (deleted_at IS NULL OR deleted_at > $2) ORDER BY id",
        )
        .bind(app_row)
        .bind(from.micros())
        .bind(to.micros())
        .fetch_all(self.read())
        .await
        .map_err(fault)
    }

    /// What is known of these CVMs up to a moment, in order, by CVM.
    pub async fn usage_marks(&self, vms: &[i64], to: Timestamp) -> Result<HashMap<i64, Vec<Mark>>, Error> {
        let mut marks: HashMap<i64, Vec<Mark>> = HashMap::new();
        for chunk in vms.chunks(500) {
            let mut query = sql::query("SELECT vm_id, at, running, vcpu, memory_mb, disk_gb FROM vm_usage WHERE at < ");
            query.push_bind(to.micros()).push(" AND vm_id IN (");
            query.push_list(chunk).push(") ORDER BY vm_id, id");
            let rows: Vec<Mark> = query.fetch_all(self.read()).await.map_err(fault)?;
            for mark in rows {
                marks.entry(mark.vm_id).or_default().push(mark);
            }
        }
        Ok(marks)
    }
}

/// A CVM has this status from now on: notes what that changes of its usage.
pub(crate) async fn usage_note(tx: &mut Tx, vm: i64, status: VmStatus, now: Timestamp) -> Result<(), Error> {
    let running = match status {
        VmStatus::Running => true,
        VmStatus::Stopped | VmStatus::Exited | VmStatus::Error => false,
        // On the way somewhere; and what is deleted has an end of its own.
        _ => return Ok(()),
    };
    sql::query(
        "INSERT INTO vm_usage (vm_id, at, running, vcpu, memory_mb, disk_gb)
         SELECT v.id, $2, $3, v.vcpu, v.memory_mb, v.disk_gb FROM vm v
         WHERE v.id = $1 AND NOT EXISTS (SELECT 1 FROM vm_usage u
            WHERE u.id = (SELECT MAX(id) FROM vm_usage WHERE vm_id = $1) AND u.running = $3
              AND u.vcpu = v.vcpu AND u.memory_mb = v.memory_mb AND u.disk_gb = v.disk_gb)",
    )
    .bind(vm)
    .bind(now.micros())
    .bind(running)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}
