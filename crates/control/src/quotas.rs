//! Quotas of workspaces, as administrators set them. What they are checked by is in `holdfast_store::quotas`.
//!
//! The one rule: a quota is the installation's word to a workspace, so only whoever runs the installation sets it, and
//! what the workspace has already is never taken away by it.

use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::quotas::{DIMENSIONS, Limits, Named, Quota, quota_in, quota_set};

use crate::{Control, Principal, RequestInfo};

/// Changes of limits, in the order of [`DIMENSIONS`]. Outer `None`: as it is; inner `None`: no limit from now on.
pub type Changes = [Option<Option<i64>>; 4];

/// All limits gone.
pub const CLEAR: Changes = [Some(None); 4];

/// More than this is no limit that anybody means.
const LARGEST: i64 = 1_000_000_000_000;

impl Control {
    /// The quota of any workspace, by its slug or `wks_` id.
    pub async fn quota_of(&self, who: &Principal, workspace: &str) -> Result<(Named, Quota), Error> {
        who.require(Action::RunInstallation)?;
        let found = self.quota_workspace(workspace).await?;
        let quota = self.store.quota(found.id).await?;
        Ok((found, quota))
    }

    /// Changes what a workspace may have. Returns what it may have and has from now on.
    pub async fn quota_change(
        &self,
        who: &Principal,
        info: &RequestInfo,
        workspace: &str,
        changes: Changes,
    ) -> Result<(Named, Quota), Error> {
        who.require(Action::RunInstallation)?;
        check(&changes)?;
        let found = self.quota_workspace(workspace).await?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok((found.clone(), quota_in(&mut tx, found.id).await?));
        }
        let before = quota_in(&mut tx, found.id).await?;
        let [vm_slots, vcpu, memory_mb, disk_gb] =
            std::array::from_fn(|i| changes[i].unwrap_or(before.limits.each()[i]));
        let limits = Limits { vm_slots, vcpu, memory_mb, disk_gb };
        quota_set(&mut tx, found.id, limits, now).await?;
        let entry = audit::Entry {
            action: if limits.are_none() { "quota.clear" } else { "quota.set" },
            target_type: "workspace",
            target_id: &found.uuid,
            operation_id: None,
            status_code: 200,
        };
        audit_insert(&mut tx, who, info, entry, now).await?;
        holdfast_store::commit(tx).await?;
        tracing::info!(workspace = found.slug, by = who.username, from = ?before.limits, to = ?limits, "quota");
        Ok((found, Quota { limits, used: before.used }))
    }

    async fn quota_workspace(&self, name: &str) -> Result<Named, Error> {
        let found = self.store.quota_workspace(name, hashid::decode(Prefix::Workspace, name)).await?;
        found.ok_or_else(|| Error::new(Code::WorkspaceNotFound, "The requested workspace was not found."))
    }
}

fn check(changes: &Changes) -> Result<(), Error> {
    for ((name, _), change) in DIMENSIONS.iter().zip(changes) {
        let Some(Some(limit)) = change else { continue };
        if *limit < 0 {
            return Err(Error::field("body", name, "greater_than_equal", "must not be negative; null is no limit"));
        }
        if *limit > LARGEST {
            return Err(Error::field("body", name, "less_than_equal", format!("must be at most {LARGEST}")));
        }
    }
    Ok(())
}
