//! `?dry_run=true`: what a request would do, without doing it.
//!
//! The one rule: a dry run is the request itself, up to its commit. The same code checks, chooses, reserves and writes in
//! a transaction; then what it wrote is read back, and the transaction is dropped instead of committed. So a preview
//! cannot disagree with the real thing, what would be refused is refused with the same error, and no id, nonce, port or
//! idempotency key is used up.
//!
//! To give a request a dry run:
//!
//! 1. In the core: end its transaction with [`Control::accept_end`] instead of `commit` and `ring_work`, and ring other
//!    bells only when that returned true.
//! 2. In the surface: name its route in a group that `holdfast_api::dry_run::routes` wraps.
//!
//! A route outside of such a group refuses the parameter, so nobody who asks for a dry run gets the real thing.

use holdfast_engine::Deadlines;
use holdfast_model::error::Error;
use holdfast_model::preview::{Placement, PlannedStep, Preview, QuotaLeft};
use holdfast_store::Tx;
use holdfast_store::nodes::Node;
use holdfast_store::preview::{Accepted, operation_read};
use holdfast_store::quotas::{DIMENSIONS, Quota};
use tokio::time::Instant;

use crate::placement::{self, Policy};
use crate::{Control, RequestInfo};

impl Control {
    /// The end of whatever accepts an operation on a VM: makes it durable and wakes the worker; or, in a dry run, leaves
    /// its preview and drops everything that was written. True when it was made durable. `began`: when admission did.
    pub(crate) async fn accept_end(
        &self,
        mut tx: Tx,
        info: &RequestInfo,
        operation: i64,
        began: Instant,
    ) -> Result<bool, Error> {
        if let Some(rehearsal) = &info.rehearsal {
            let accepted = operation_read(&mut tx, operation).await?;
            drop(tx);
            rehearsal.get_or_init(|| preview(accepted, &self.settings.deadlines, self.policy()));
            return Ok(false);
        }
        holdfast_store::commit(tx).await?;
        self.metrics.accepted(began.elapsed());
        self.ring_work();
        Ok(true)
    }

    /// The same for a request that accepts no operation.
    pub(crate) async fn write_end(&self, tx: Tx, info: &RequestInfo, preview: Preview) -> Result<(), Error> {
        match &info.rehearsal {
            Some(rehearsal) => {
                drop(tx);
                rehearsal.get_or_init(|| preview);
                Ok(())
            }
            None => holdfast_store::commit(tx).await,
        }
    }
}

fn preview(accepted: Accepted, deadlines: &Deadlines, policy: Policy) -> Preview {
    let Accepted { plan, diff, node, quota, waits_for } = accepted;
    let steps = plan.into_iter().flat_map(|plan| {
        plan.steps.iter().enumerate().map(|(index, step)| PlannedStep {
            name: step.name,
            deadline: deadlines.of(step.deadline),
            undone_on_failure: !plan.past_pivot(index),
        })
    });
    Preview {
        operation_type: plan.map(|plan| plan.name),
        changes: diff,
        steps: steps.collect(),
        pivot: plan.and_then(|plan| plan.steps.get(plan.pivot?)).map(|step| step.name),
        placement: node.map(|node| placed(&node, policy)),
        quota: Some(left(&quota)),
        waits_for,
    }
}

/// A node with what it has left.
pub(crate) fn placed(node: &Node, policy: Policy) -> Placement {
    let free = placement::free(node, policy);
    Placement {
        node: node.name.clone(),
        region: node.region.clone(),
        vcpu: free.vcpu,
        memory_mb: free.memory_mb,
        disk_gb: free.disk_gb,
        slots: free.slots,
    }
}

/// A quota as a preview shows it.
pub(crate) fn left(quota: &Quota) -> [QuotaLeft; 4] {
    let (limits, remaining) = (quota.limits.each(), quota.remaining().each());
    std::array::from_fn(|i| QuotaLeft { name: DIMENSIONS[i].0, limit: limits[i], remaining: remaining[i] })
}
