//! What happened to the CVMs of an app: moments of their operations, and what they did by themselves.
//!
//! The one rule: events are read where they were written. Those of operations that left by age are in the archive.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::sql::{self, Query, record};
use crate::{Store, fault};

/// Something that happened to a CVM of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppEvent {
    /// Public id of the operation that it is a moment of.
    pub operation_uuid: Option<String>,
    /// Its number within the operation.
    pub seq: Option<i64>,
    pub event_type: String,
    /// Status of the CVM at that moment.
    pub state: Option<String>,
    pub at: i64,
    pub operation_type: Option<String>,
    pub target_state: Option<String>,
    /// The operation's diff in JSON, or the words that an event by itself came with.
    pub payload: Option<String>,
    /// Who asked for the operation.
    pub triggered_by: Option<i64>,
    pub vm_uuid: String,
    /// 40 hex digits.
    pub instance_id: String,
    pub vm_name: String,
    pub instance_type: Option<String>,
    pub workspace_id: i64,
    pub created_by: i64,
}

record!(AppEvent {
    operation_uuid,
    seq,
    event_type,
    state,
    at,
    operation_type,
    target_state,
    payload,
    triggered_by,
    vm_uuid,
    instance_id,
    vm_name,
    instance_type,
    workspace_id,
    created_by,
});

/// Which events. Everything set must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub event_type: Option<String>,
    pub operation_type: Option<String>,
    /// Instance id or UUID of a CVM.
    pub instance: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

impl Filter {
    fn push(&self, query: &mut Query, app_row: i64, event_type: &str, at: &str) {
        query.push(" WHERE v.app_row = ").push_bind(app_row);
        if let Some(word) = &self.event_type {
            query.push(format!(" AND {event_type} = ")).push_bind(word.clone());
        }
        if let Some(id) = &self.instance {
            query.push(" AND (v.instance_id = ").push_bind(id.clone());
            query.push(" OR v.uuid = ").push_bind(id.clone()).push(")");
        }
        for (sign, time) in [(">=", self.from), ("<=", self.to)] {
            if let Some(time) = time {
                query.push(format!(" AND {at} {sign} ")).push_bind(time.micros());
            }
        }
    }

    /// Both kinds of events as one table.
    fn push_all(&self, query: &mut Query, app_row: i64) {
        query.push(
            "(SELECT o.uuid AS operation_uuid, e.seq, e.event_type, e.state, e.at, o.operation_type, o.target_state,
                o.diff AS payload, o.user_id AS triggered_by, v.uuid AS vm_uuid, v.instance_id,
                o.resource_name AS vm_name, v.instance_type, v.workspace_id, v.created_by, e.id AS number
             FROM vm v JOIN operation o ON o.resource_id = v.id AND o.kind = 'vm'
             JOIN operation_event e ON e.operation_id = o.id",
        );
        self.push(query, app_row, "e.event_type", "e.at");
        if let Some(word) = &self.operation_type {
            query.push(" AND o.operation_type = ").push_bind(word.clone());
        } else {
            query.push(
                " UNION ALL SELECT CAST(NULL AS TEXT), CAST(NULL AS BIGINT), x.event, CAST(NULL AS TEXT), x.at,
                    CAST(NULL AS TEXT), CAST(NULL AS TEXT), x.body, CAST(NULL AS BIGINT), v.uuid, v.instance_id,
                    v.name, v.instance_type, v.workspace_id, v.created_by, x.id
                 FROM vm v JOIN vm_event x ON x.vm_id = v.id",
            );
            self.push(query, app_row, "x.event", "x.at");
        }
        query.push(") AS happened");
    }
}

impl Store {
    /// The newest events of an app's CVMs, deleted ones among them, newest first; and how many there are in all.
    pub async fn app_events(&self, app_row: i64, filter: &Filter, limit: i64) -> Result<(Vec<AppEvent>, i64), Error> {
        let mut query = sql::query(
            "SELECT operation_uuid, seq, event_type, state, at, operation_type, target_state, payload, triggered_by,
                vm_uuid, instance_id, vm_name, instance_type, workspace_id, created_by FROM ",
        );
        filter.push_all(&mut query, app_row);
        query.push(" ORDER BY at DESC, number DESC LIMIT ").push_bind(limit);
        let events = query.fetch_all(self.read()).await.map_err(fault)?;
        let mut query = sql::query("SELECT COUNT(*) FROM ");
        filter.push_all(&mut query, app_row);
        let total = query.fetch_one(self.read()).await.map_err(fault)?;
        Ok((events, total))
    }
}
