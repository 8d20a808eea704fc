//! What an accepted operation comes to, read in the transaction that accepted it.

use holdfast_engine::{Plan, ops};
use holdfast_model::error::Error;
use holdfast_model::operation::Diff;
use holdfast_model::vm::VmStatus;

use crate::nodes::{Node, nodes_for_placement};
use crate::quotas::{Quota, Size, quota_in};
use crate::sql::{self, record};
use crate::{Tx, fault, from_json};

/// An operation that was just accepted.
#[derive(Debug)]
pub struct Accepted {
    pub plan: Option<&'static Plan>,
    pub diff: Diff,
    /// The node of its VM, with what is reserved on it once the operation is done.
    pub node: Option<Node>,
    /// Of its VM's workspace, with what it has once the operation is done.
    pub quota: Quota,
    /// Public id of the operation that it waits for.
    pub waits_for: Option<String>,
}

struct Row {
    operation_type: String,
    plan_version: i64,
    diff: String,
    workspace_id: i64,
    node_id: i64,
    vcpu: i64,
    memory_mb: i64,
    disk_gb: i64,
    waits_for: Option<String>,
}

record!(Row { operation_type, plan_version, diff, workspace_id, node_id, vcpu, memory_mb, disk_gb, waits_for });

/// Reads an operation on a VM back.
pub async fn operation_read(tx: &mut Tx, operation: i64) -> Result<Accepted, Error> {
    let row: Row = sql::query(
        "SELECT o.operation_type, o.plan_version, o.diff, v.workspace_id, v.node_id, v.vcpu, v.memory_mb, v.disk_gb,
            (SELECT MIN(holder.uuid) FROM operation_resource mine
                JOIN operation_resource other ON other.kind = mine.kind AND other.resource_id = mine.resource_id
                    AND other.held
                JOIN operation holder ON holder.id = other.operation_id
                WHERE mine.operation_id = o.id AND mine.waiting) AS waits_for
         FROM operation o JOIN vm v ON v.id = o.resource_id WHERE o.id = $1",
    )
    .bind(operation)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    let plan = ops::find(&row.operation_type, u32::try_from(row.plan_version).unwrap_or(0));
    let mut node = nodes_for_placement(tx).await?.into_iter().find(|node| node.id == row.node_id);
    let mut quota = quota_in(tx, row.workspace_id).await?;
    if plan.is_some_and(|plan| plan.target == VmStatus::Deleted) {
        // What it holds is given back by its last step.
        if let Some(node) = node.as_mut() {
            node.reserve(-row.vcpu, -row.memory_mb, -row.disk_gb, -1);
        }
        quota = quota.after(Size { vm_slots: -1, vcpu: -row.vcpu, memory_mb: -row.memory_mb, disk_gb: -row.disk_gb });
    }
    Ok(Accepted { plan, diff: from_json(&row.diff)?, node, quota, waits_for: row.waits_for })
}
