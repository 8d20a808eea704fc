//! Events as webhooks tell them: the beginnings and ends of operations, with what a message says of their CVM.
//!
//! The one rule: a message depends on nothing that changes after its event was committed, so the same event always makes
//! the same message: names, app and error are those of the operation, which is over when its last event is there.

use holdfast_model::error::Error;

use crate::feed::LAST_POSITION;
use crate::sql::{self, record};
use crate::{Store, fault};

/// The beginning or the end of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub position: i64,
    pub workspace_id: i64,
    pub workspace_slug: String,
    pub workspace_name: String,
    pub operation_uuid: String,
    pub operation_type: String,
    pub operation_status: String,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub resource_uuid: String,
    pub resource_name: String,
    pub app_id: Option<String>,
    pub seq: i64,
    pub event_type: String,
    /// Status of the resource at that moment.
    pub state: String,
    pub at: i64,
}

record!(Heard {
    position,
    workspace_id,
    workspace_slug,
    workspace_name,
    operation_uuid,
    operation_type,
    operation_status,
    error_code,
    error_message,
    resource_uuid,
    resource_name,
    app_id,
    seq,
    event_type,
    state,
    at,
});

/// Positions looked at by one query, at most.
const SPAN: i64 = 5000;

impl Store {
    /// Some beginnings and ends after `position`, of one workspace or of all, at most `limit`; and the position up to which
    /// there are no others. That is `position` itself when there is nothing new.
    pub async fn webhook_events(
        &self,
        position: i64,
        workspace: Option<i64>,
        limit: i64,
    ) -> Result<(Vec<Heard>, i64), Error> {
        let mut snapshot = self.read().begin()?;
        let newest: i64 = sql::query(LAST_POSITION).fetch_one(&mut *snapshot).await.map_err(fault)?;
        // What left with an archive is not looked for.
        let base: i64 = sql::query("SELECT COALESCE(MIN(position), 0) - 1 FROM event_position")
            .fetch_one(&mut *snapshot)
            .await
            .map_err(fault)?;
        let after = position.max(base);
        let last = newest.min(after.saturating_add(SPAN));
        if last <= position {
            return Ok((Vec::new(), position));
        }
        let mut query = sql::query(
            "SELECT p.position, o.workspace_id, w.slug AS workspace_slug, w.name AS workspace_name,
                o.uuid AS operation_uuid, o.operation_type, o.status AS operation_status, o.error_code, o.error_message,
                o.resource_uuid, o.resource_name, a.app_id, e.seq, e.event_type, e.state, e.at
             FROM event_position p JOIN operation_event e ON e.id = p.event_id JOIN operation o ON o.id = e.operation_id
             JOIN workspace w ON w.id = o.workspace_id
             LEFT JOIN vm v ON v.id = o.resource_id LEFT JOIN app a ON a.id = v.app_row WHERE p.position > ",
        );
        query.push_bind(after).push(" AND p.position <= ").push_bind(last).push(" AND e.step IS NULL");
        if let Some(workspace) = workspace {
            query.push(" AND o.workspace_id = ").push_bind(workspace);
        }
        query.push(" ORDER BY p.position LIMIT ").push_bind(limit);
        let events: Vec<Heard> = query.fetch_all(&mut *snapshot).await.map_err(fault)?;
        let full = i64::try_from(events.len()).is_ok_and(|count| count >= limit);
        let upto = events.last().filter(|_| full).map_or(last, |event| event.position);
        Ok((events, upto))
    }
}
