//! Counts for the metrics.
//!
//! The one rule: each is cheap at any size, because it is asked for every few seconds: operations that are over are in
//! no index that is read here.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::sql;
use crate::{Store, fault};

/// How much there is of what an operator watches. Words that are missing count 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that are not over, by status.
    pub operations: Vec<(String, i64)>,
    /// Nodes by state: `online`, `not_ready`, `maintenance`, `offline`, `revoked`.
    pub nodes: Vec<(String, i64)>,
    /// Committed events that no checkpoint covers yet.
    pub events_unsealed: i64,
}

impl Store {
    /// Nodes that were not heard of for `patience` microseconds count as offline.
    pub async fn counts(&self, patience: i64, now: Timestamp) -> Result<Counts, Error> {
        // The condition is the index's own, word for word.
        let operations = sql::query(
            "SELECT status, COUNT(*) FROM operation WHERE status IN ('pending', 'running', 'stuck') GROUP BY status",
        )
        .fetch_all(self.read())
        .await
        .map_err(fault)?;
        let nodes = sql::query(
            "SELECT CASE WHEN t.revoked_at IS NOT NULL THEN 'revoked' WHEN n.last_seen_at < $1 THEN 'offline'
                WHEN n.cordoned THEN 'maintenance' WHEN n.ready THEN 'online' ELSE 'not_ready' END AS state, COUNT(*)
             FROM node n JOIN node_token t ON t.id = n.token_id GROUP BY state",
        )
        .bind(now.micros() - patience)
        .fetch_all(self.read())
        .await
        .map_err(fault)?;
        let events_unsealed = sql::query(
            "SELECT COUNT(*) FROM event_position
             WHERE position > (SELECT COALESCE(MAX(last_position), 0) FROM checkpoint)",
        )
        .fetch_one(self.read())
        .await
        .map_err(fault)?;
        Ok(Counts { operations, nodes, events_unsealed })
    }
}
