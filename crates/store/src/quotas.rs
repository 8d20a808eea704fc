//! Quotas: how many CVMs a workspace may have, and how large they may be together.
//!
//! The one rule: there is no counter. What a workspace has is added up from the rows of its CVMs that exist, each at the
//! larger of its two sizes while an update is on its way. So whatever brings a CVM into being or makes it larger reserves,
//! whatever ends it or makes it smaller gives back, exactly once and without doing anything for it; and the two functions
//! that write such rows ([`vm_insert`](crate::vms::vm_insert), [`revision_insert`](crate::revisions::revision_insert))
//! check the limits themselves, so no way to a larger CVM leads past them.
//!
//! Two accepts cannot both take what is left: the check first writes the workspace's row of limits, so of two transactions
//! the second waits for the first, or, where they share a commit, runs after it and sees what it wrote. See
//! docs/adr/0038.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Detail, Error};

use crate::sql::{self, Session, record};
use crate::{Store, Tx, fault};

/// The dimensions of a quota, in the order in which they are shown and checked: name, and what is counted.
pub const DIMENSIONS: [(&str, &str); 4] =
    [("vm_slots", "CVMs"), ("vcpu", "vCPUs"), ("memory_mb", "MB of memory"), ("disk_gb", "GB of disk")];

/// CVMs and their sizes: how many, vCPUs, memory in MB, disk in GB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub vm_slots: i64,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
}

record!(Size { vm_slots, vcpu, memory_mb, disk_gb });

impl Size {
    /// One CVM of this size.
    pub fn of_vm(vcpu: i64, memory_mb: i64, disk_gb: i64) -> Self {
        Self { vm_slots: 1, vcpu, memory_mb, disk_gb }
    }

    /// In the order of [`DIMENSIONS`].
    pub fn each(self) -> [i64; 4] {
        [self.vm_slots, self.vcpu, self.memory_mb, self.disk_gb]
    }
}

/// The most that a workspace may have. `None`: nothing limits it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub vm_slots: Option<i64>,
    pub vcpu: Option<i64>,
    pub memory_mb: Option<i64>,
    pub disk_gb: Option<i64>,
}

record!(Limits { vm_slots, vcpu, memory_mb, disk_gb });

impl Limits {
    /// In the order of [`DIMENSIONS`].
    pub fn each(self) -> [Option<i64>; 4] {
        [self.vm_slots, self.vcpu, self.memory_mb, self.disk_gb]
    }

    /// True when nothing limits anything.
    pub fn are_none(self) -> bool {
        self.each().iter().all(Option::is_none)
    }
}

/// What a workspace may have, and what it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    pub limits: Limits,
    pub used: Size,
}

impl Quota {
    /// What is left in each dimension; never negative, though a limit may lie below what there is. `None`: no limit.
    pub fn remaining(&self) -> Limits {
        let left = |limit: Option<i64>, used: i64| limit.map(|limit| (limit - used).max(0));
        Limits {
            vm_slots: left(self.limits.vm_slots, self.used.vm_slots),
            vcpu: left(self.limits.vcpu, self.used.vcpu),
            memory_mb: left(self.limits.memory_mb, self.used.memory_mb),
            disk_gb: left(self.limits.disk_gb, self.used.disk_gb),
        }
    }

    /// Refuses `more` where it is more than is left. What is not to grow is not looked at: a limit that was lowered below
    /// what there is refuses growth, and nothing else.
    pub fn check(&self, more: Size) -> Result<(), Error> {
        let mut details = Vec::new();
        for (index, (name, what)) in DIMENSIONS.iter().enumerate() {
            let (more, used) = (more.each()[index], self.used.each()[index]);
            let Some(limit) = self.limits.each()[index].filter(|_| more > 0) else { continue };
            if used.saturating_add(more) > limit {
                let left = (limit - used).max(0);
                details.push(Detail {
                    loc: vec!["quota".to_owned(), (*name).to_owned()],
                    message: format!("{more} more {what} were asked for; {left} of {limit} are left."),
                    kind: "quota_exceeded".to_owned(),
                });
            }
        }
        if details.is_empty() {
            return Ok(());
        }
        let reasons: Vec<&str> = details.iter().map(|detail| detail.message.as_str()).collect();
        let message = format!("The workspace's quota does not allow this: {}", reasons.join(" "));
        Err(Error { details, ..Error::new(Code::QuotaExceeded, message) })
    }

    /// The same quota after the workspace has got this much more; what it has given back is negative.
    pub fn after(mut self, more: Size) -> Self {
        self.used.vm_slots += more.vm_slots;
        self.used.vcpu += more.vcpu;
        self.used.memory_mb += more.memory_mb;
        self.used.disk_gb += more.disk_gb;
        self
    }
}

// As a node counts what is on it: until nothing of a VM is left, and during an update at the larger size.
const USED: &str = "SELECT COUNT(*) AS vm_slots,
        CAST(COALESCE(SUM(CASE WHEN held_vcpu > vcpu THEN held_vcpu ELSE vcpu END), 0) AS BIGINT) AS vcpu,
        CAST(COALESCE(SUM(CASE WHEN held_memory_mb > memory_mb THEN held_memory_mb ELSE memory_mb END), 0) AS BIGINT)
            AS memory_mb,
        CAST(COALESCE(SUM(CASE WHEN held_disk_gb > disk_gb THEN held_disk_gb ELSE disk_gb END), 0) AS BIGINT) AS disk_gb
     FROM vm WHERE workspace_id = $1 AND deleted_at IS NULL";

async fn used(connection: &mut Session, workspace: i64) -> Result<Size, Error> {
    sql::query(USED).bind(workspace).fetch_one(connection).await.map_err(fault)
}

async fn limits(connection: &mut Session, workspace: i64) -> Result<Limits, Error> {
    let row = sql::query("SELECT vm_slots, vcpu, memory_mb, disk_gb FROM workspace_quota WHERE workspace_id = $1")
        .bind(workspace)
        .fetch_optional(connection)
        .await
        .map_err(fault)?;
    Ok(row.unwrap_or_default())
}

/// A workspace as administrators name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub id: i64,
    pub uuid: String,
    pub slug: String,
    pub tier: String,
}

record!(Named { id, uuid, slug, tier });

impl Store {
    /// What a workspace may have, and what it has now.
    pub async fn quota(&self, workspace: i64) -> Result<Quota, Error> {
        let mut connection = self.read().begin()?;
        let limits = limits(&mut connection, workspace).await?;
        Ok(Quota { limits, used: used(&mut connection, workspace).await? })
    }

    /// What a workspace may have, without adding up what it has.
    pub async fn quota_limits(&self, workspace: i64) -> Result<Limits, Error> {
        let mut connection = self.read().begin()?;
        limits(&mut connection, workspace).await
    }

    /// The workspace with this slug or internal key.
    pub async fn quota_workspace(&self, slug: &str, key: Option<i64>) -> Result<Option<Named>, Error> {
        sql::query(
            "SELECT id, uuid, slug, tier FROM workspace WHERE slug = $1 OR id = $2 ORDER BY slug = $1 DESC LIMIT 1",
        )
        .bind(slug)
        .bind(key)
        .fetch_optional(self.read())
        .await
        .map_err(fault)
    }
}

/// The quota as it stands inside a transaction that may use some of it, or has.
pub async fn quota_in(tx: &mut Tx, workspace: i64) -> Result<Quota, Error> {
    let limits = limits(tx, workspace).await?;
    Ok(Quota { limits, used: used(tx, workspace).await? })
}

/// Refuses `more` where the workspace may not have it. Whoever comes after this transaction and asks the same waits for
/// its end. A workspace without limits costs one look-up.
pub async fn quota_check(tx: &mut Tx, workspace: i64, more: Size) -> Result<(), Error> {
    if more.each().iter().all(|more| *more <= 0) {
        return Ok(());
    }
    let limits: Option<Limits> = sql::query(
        // The write is the lock: a database that lets transactions run side by side makes the next one wait here.
        "UPDATE workspace_quota SET updated_at = updated_at WHERE workspace_id = $1
         RETURNING vm_slots, vcpu, memory_mb, disk_gb",
    )
    .bind(workspace)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    match limits.filter(|limits| !limits.are_none()) {
        Some(limits) => Quota { limits, used: used(tx, workspace).await? }.check(more),
        None => Ok(()),
    }
}

/// Sets what a workspace may have. What it has beyond stays, and does not grow. Returns what it was allowed before.
pub async fn quota_set(tx: &mut Tx, workspace: i64, new: Limits, now: Timestamp) -> Result<Limits, Error> {
    let before = limits(tx, workspace).await?;
    if new == before {
        return Ok(before);
    }
    if new.are_none() {
        let gone = sql::query("DELETE FROM workspace_quota WHERE workspace_id = $1").bind(workspace);
        gone.execute(tx).await.map_err(fault)?;
        return Ok(before);
    }
    sql::query(
        "INSERT INTO workspace_quota (workspace_id, vm_slots, vcpu, memory_mb, disk_gb, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (workspace_id) DO UPDATE SET vm_slots = excluded.vm_slots,
            vcpu = excluded.vcpu, memory_mb = excluded.memory_mb, disk_gb = excluded.disk_gb,
            updated_at = excluded.updated_at",
    )
    .bind(workspace)
    .bind(new.vm_slots)
    .bind(new.vcpu)
    .bind(new.memory_mb)
    .bind(new.disk_gb)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    Ok(before)
}

/// What of a workspace may be more than it was when one of its CVMs, of which `counted` is reserved, becomes `wanted`.
pub(crate) fn growth(counted: Size, wanted: Size) -> Size {
    Size {
        vm_slots: wanted.vm_slots - counted.vm_slots,
        vcpu: wanted.vcpu - counted.vcpu,
        memory_mb: wanted.memory_mb - counted.memory_mb,
        disk_gb: wanted.disk_gb - counted.disk_gb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: Size = Size { vm_slots: 2, vcpu: 6, memory_mb: 4096, disk_gb: 40 };

    fn quota(vcpu: Option<i64>, disk_gb: Option<i64>) -> Quota {
        Quota { limits: Limits { vcpu, disk_gb, ..Limits::default() }, used: USED }
    }

    #[test]
    fn what_is_left_is_given_and_no_more() {
        let more = |vcpu, disk_gb| Size { vm_slots: 1, vcpu, memory_mb: 1 << 40, disk_gb };
        let quota = quota(Some(8), Some(40));
        assert!(quota.check(more(2, 0)).is_ok());
        let error = quota.check(more(3, 1)).expect_err("more than is left");
        assert_eq!((error.code, error.details.len()), (Code::QuotaExceeded, 2));
        assert!(error.message.contains("3 more vCPUs were asked for; 2 of 8 are left."), "{}", error.message);
        assert!(error.message.contains("1 more GB of disk were asked for; 0 of 40 are left."), "{}", error.message);
        assert!(quota.check(more(i64::MAX, 0)).is_err(), "no number is too large to be refused");
    }

    #[test]
    fn a_limit_below_what_there_is_refuses_growth_only() {
        let quota = quota(Some(4), None);
        assert!(quota.check(Size { disk_gb: 10, ..Size::default() }).is_ok());
        assert!(quota.check(Size { vcpu: -2, disk_gb: 10, ..Size::default() }).is_ok());
        assert!(quota.check(Size { vcpu: 1, ..Size::default() }).is_err());
        assert_eq!(quota.remaining(), Limits { vcpu: Some(0), ..Limits::default() });
    }
}
