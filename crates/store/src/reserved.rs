//! What VMs reserve on their nodes, counted on each node's row, so that placing one costs the same however many there are.
//!
//! The one rule: whoever writes a column that a reservation is made of (a VM's node, its two sizes, `deleted_at`) takes it
//! off before and puts it on after, in the same transaction. Such writers are an insert, an update's accept, apply and end,
//! and a release; they are all in `vms.rs` and `revisions.rs`. See docs/adr/0044.
//!
//! A VM counts until nothing of it is left on the node, whatever its status says; during an update the larger size does.

use holdfast_model::error::Error;

use crate::sql;
use crate::{Tx, fault};

/// Puts what a VM reserves on its node's row. Nothing for a VM that is deleted.
pub(crate) async fn reservation_on(tx: &mut Tx, vm: i64) -> Result<(), Error> {
    count(tx, vm, 1).await
}

/// Takes what a VM reserves off its node's row. Nothing for a VM that is deleted.
pub(crate) async fn reservation_off(tx: &mut Tx, vm: i64) -> Result<(), Error> {
    count(tx, vm, -1).await
}

async fn count(tx: &mut Tx, vm: i64, sign: i64) -> Result<(), Error> {
    sql::query(
        "UPDATE node SET used_slots = used_slots + $2, used_vcpu = used_vcpu + $2 * v.vcpu,
            used_memory_mb = used_memory_mb + $2 * v.memory_mb, used_disk_gb = used_disk_gb + $2 * v.disk_gb
         FROM (SELECT node_id, CASE WHEN held_vcpu > vcpu THEN held_vcpu ELSE vcpu END AS vcpu,
                CASE WHEN held_memory_mb > memory_mb THEN held_memory_mb ELSE memory_mb END AS memory_mb,
                CASE WHEN held_disk_gb > disk_gb THEN held_disk_gb ELSE disk_gb END AS disk_gb
            FROM vm WHERE id = $1 AND deleted_at IS NULL) AS v
         WHERE node.id = v.node_id",
    )
    .bind(vm)
    .bind(sign)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}
