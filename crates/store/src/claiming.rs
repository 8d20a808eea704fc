//! Who is worked for next: operations that are due, claimed by lease, each workspace in its turn.
//!
//! The one rule: a batch is filled by age first and by turn then, and never by age alone. So whatever one workspace has
//! asked for, the oldest due operation of every other one is claimed as soon as its turn comes: in the very next batch
//! while fewer than three quarters of a batch ([`by_turn`]) of workspaces have something due, and after as many batches
//! as it takes to go around otherwise.
//!
//! ```text
//!   due, oldest first    A A A A A A A A ... (a thousand) ... B          batch of 8
//!   by age               A A                                             if these are all: done, with one statement
//!   by turn              A's share: A A A, B's share: B                  each workspace's oldest
//!   what is left over    A A                                             the oldest that nobody took
//! ```
//! The round begins after the workspace that the last one ended with. That place is in memory only: a server that starts
//! begins with the first workspace, and nothing is lost by it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::operations::Claimed;
use crate::sql;
use crate::{Store, Tx, fault, pass_on};

/// What a claim writes.
struct Lease<'a> {
    owner: &'a str,
    until: Timestamp,
    now: Timestamp,
}

impl Store {
    /// Takes at most `limit` operations that are due and that nobody holds: the oldest, and every workspace's in turn.
    ///
    /// The leases become durable with whatever the caller writes next. A decision is written under its lease's token, so
    /// one whose lease was lost with a commit that failed is not written.
    pub async fn operations_claim(
        &self,
        owner: &str,
        lease: Duration,
        limit: i64,
        now: Timestamp,
    ) -> Result<Vec<Claimed>, Error> {
        let lease = Lease { owner, until: now.plus(lease), now };
        let mut tx = self.begin().await?;
        let by_age = limit - by_turn(limit);
        let mut claimed = oldest(&mut tx, &lease, by_age).await?;
        if i64::try_from(claimed.len()).unwrap_or(limit) == by_age {
            // There may be more than the oldest, and of others.
            self.round(&mut tx, &lease, by_turn(limit), &mut claimed).await?;
            let left = limit - i64::try_from(claimed.len()).unwrap_or(limit);
            claimed.extend(oldest(&mut tx, &lease, left).await?);
        }
        pass_on(tx).await?;
        Ok(claimed)
    }

    /// Takes an equal share of each workspace's oldest, for at most `limit` in all.
    async fn round(&self, tx: &mut Tx, lease: &Lease<'_>, limit: i64, claimed: &mut Vec<Claimed>) -> Result<(), Error> {
        let after = self.turn.load(Ordering::Relaxed);
        let mut turns = workspaces_due(tx, (after, i64::MAX), limit, lease.now).await?;
        let left = limit - i64::try_from(turns.len()).unwrap_or(limit);
        if left > 0 && after > 0 {
            turns.extend(workspaces_due(tx, (0, after), left, lease.now).await?);
        }
        let Some(last) = turns.last() else { return Ok(()) };
        self.turn.store(*last, Ordering::Relaxed);
        let share = limit / i64::try_from(turns.len()).unwrap_or(limit).max(1);
        for workspace in turns {
            claimed.extend(oldest_of(tx, lease, workspace, share.max(1)).await?);
        }
        Ok(())
    }
}

/// Of a batch, how many are claimed by turn and not by age.
fn by_turn(limit: i64) -> i64 {
    limit * 3 / 4
}

/// A claim of the operations that are due, that nobody holds, and that the rest of the condition picks.
macro_rules! claim {
    ($of:literal) => {
        concat!(
            "UPDATE operation SET lease_token = lease_token + 1, lease_owner = $1, lease_until = $2,
                attempts = attempts + 1
             WHERE id IN (SELECT id FROM operation WHERE ",
            $of,
            "wake_at IS NOT NULL AND wake_at <= $3 AND (lease_until IS NULL OR lease_until < $3)
                ORDER BY wake_at LIMIT $4)
             RETURNING id, uuid, operation_type, plan_version, lease_token, attempts, created_at"
        )
    };
}

async fn oldest(tx: &mut Tx, lease: &Lease<'_>, limit: i64) -> Result<Vec<Claimed>, Error> {
    if limit <= 0 {
        return Ok(Vec::new());
    }
    sql::query(claim!(""))
        .bind(lease.owner)
        .bind(lease.until.micros())
        .bind(lease.now.micros())
        .bind(limit)
        .fetch_all(&mut **tx)
        .await
        .map_err(fault)
}

async fn oldest_of(tx: &mut Tx, lease: &Lease<'_>, workspace: i64, limit: i64) -> Result<Vec<Claimed>, Error> {
    sql::query(claim!("workspace_id = $5 AND "))
        .bind(lease.owner)
        .bind(lease.until.micros())
        .bind(lease.now.micros())
        .bind(limit)
        .bind(workspace)
        .fetch_all(&mut **tx)
        .await
        .map_err(fault)
}

/// Workspaces between these keys, the first not included, that have something to claim; by their keys, at most `limit`.
/// It skips in the index from one workspace to the next, however much each of them has.
async fn workspaces_due(tx: &mut Tx, (after, last): (i64, i64), limit: i64, now: Timestamp) -> Result<Vec<i64>, Error> {
    sql::query(
        "WITH RECURSIVE line(workspace_id) AS (
            SELECT MIN(workspace_id) FROM operation WHERE wake_at IS NOT NULL AND workspace_id > $1
            UNION ALL
            SELECT (SELECT MIN(o.workspace_id) FROM operation o
                WHERE o.wake_at IS NOT NULL AND o.workspace_id > line.workspace_id)
            FROM line WHERE line.workspace_id < $2)
         SELECT workspace_id FROM line WHERE workspace_id <= $2 AND EXISTS (SELECT 1 FROM operation o
            WHERE o.workspace_id = line.workspace_id AND o.wake_at IS NOT NULL AND o.wake_at <= $3
                AND (o.lease_until IS NULL OR o.lease_until < $3))
         LIMIT $4",
    )
    .bind(after)
    .bind(last)
    .bind(now.micros())
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(fault)
}
