//! Events in the order of their positions: what streams read.
//!
//! The one rule: a position is given once, without gaps, by the transaction that writes its event. So whoever has seen
//! position n has seen everything up to n, and asks for what is after it.

use holdfast_model::error::Error;

use crate::sql::{self, record};
use crate::{Store, fault};

/// An event at its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positioned {
    pub position: i64,
    pub workspace_id: i64,
    pub project_id: i64,
    pub operation_id: i64,
    pub operation_uuid: String,
    pub operation_type: String,
    pub resource_uuid: String,
    pub resource_name: String,
    pub seq: i64,
    pub event_type: String,
    pub step: Option<String>,
    pub state: String,
    pub at: i64,
    /// Status of the operation when this was read, not when it happened.
    pub operation_status: String,
}

record!(Positioned {
    position,
    workspace_id,
    project_id,
    operation_id,
    operation_uuid,
    operation_type,
    resource_uuid,
    resource_name,
    seq,
    event_type,
    step,
    state,
    at,
    operation_status,
});

/// The newest position that was ever given. An archive may have taken the event itself; its checkpoint stays.
pub(crate) const LAST_POSITION: &str = "SELECT COALESCE(MAX(position), 0) FROM (SELECT MAX(position) AS position
    FROM event_position UNION ALL SELECT MAX(last_position) FROM checkpoint) AS newest";

const FEED: &str =
    "SELECT p.position, o.workspace_id, o.project_id, e.operation_id, o.uuid AS operation_uuid, o.operation_type,
        o.resource_uuid, o.resource_name, e.seq, e.event_type, e.step, e.state, e.at, o.status AS operation_status
     FROM event_position p JOIN operation_event e ON e.id = p.event_id JOIN operation o ON o.id = e.operation_id";

impl Store {
    /// The newest position; 0 when there is none.
    pub async fn last_position(&self) -> Result<i64, Error> {
        sql::query(LAST_POSITION).fetch_one(self.by_key()).await.map_err(fault)
    }

    /// At most `limit` events of all operations after `position`.
    pub async fn events_after(&self, position: i64, limit: i64) -> Result<Vec<Positioned>, Error> {
        let mut query = sql::query(FEED);
        query.push(" WHERE p.position > ").push_bind(position);
        query.push(" ORDER BY p.position LIMIT ").push_bind(limit);
        query.fetch_all(self.read()).await.map_err(fault)
    }

    /// The events of one operation after `position`.
    pub async fn events_of_after(&self, operation: i64, position: i64) -> Result<Vec<Positioned>, Error> {
        let mut query = sql::query(FEED);
        query.push(" WHERE e.operation_id = ").push_bind(operation);
        query.push(" AND p.position > ").push_bind(position).push(" ORDER BY p.position");
        query.fetch_all(self.read()).await.map_err(fault)
    }
}
