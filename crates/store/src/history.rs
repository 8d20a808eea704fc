//! Reading operations: each list is a range of an index, newest first, in pages that go both ways.

use std::collections::HashMap;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::operation::{Diff, Kind, Status, Verb};
use sqlx::QueryBuilder;

use crate::{Db, Store, fault, from_json, stored};

/// An operation as the surfaces show it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Operation {
    pub id: i64,
    pub uuid: String,
    pub workspace_uuid: String,
    pub project_uuid: String,
    kind: String,
    verb: String,
    pub operation_type: String,
    pub plan_version: i64,
    pub target_state: String,
    pub resource_id: i64,
    pub resource_uuid: String,
    pub resource_name: String,
    pub resource_status: String,
    pub compose_hash: Option<String>,
    pub user_id: i64,
    pub username: String,
    pub email: String,
    pub api_key_id: Option<i64>,
    pub client_address: Option<String>,
    pub request_id: String,
    pub trace_id: Option<String>,
    diff: String,
    status: String,
    pub direction: String,
    pub step: i64,
    sub_operations: String,
    pub deadline_at: Option<i64>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub error_internal: Option<String>,
    /// Public id of the failed operation that this one repeats.
    pub retry_of: Option<String>,
    pub cancelled_by: Option<String>,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub updated_at: i64,
}

impl Operation {
    pub fn kind(&self) -> Result<Kind, Error> {
        stored(Kind::parse(&self.kind), "kind", &self.kind)
    }

    pub fn verb(&self) -> Result<Verb, Error> {
        stored(Verb::parse(&self.verb), "verb", &self.verb)
    }

    pub fn status(&self) -> Result<Status, Error> {
        stored(Status::parse(&self.status), "operation status", &self.status)
    }

    pub fn diff(&self) -> Result<Diff, Error> {
        from_json(&self.diff)
    }

    /// Step names in the order they ran.
    pub fn sub_operations(&self) -> Result<Vec<String>, Error> {
        from_json(&self.sub_operations)
    }

    pub fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id }
    }
}

/// One moment of an operation.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Event {
    pub operation_id: i64,
    pub seq: i64,
    pub event_type: String,
    pub step: Option<String>,
    pub state: String,
    pub at: i64,
}

/// A place in the order of operations; a cursor is a signed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub created_at: i64,
    pub id: i64,
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Newest,
    /// After this place, towards older ones.
    OlderThan(Place),
    /// Before this place, towards newer ones.
    NewerThan(Place),
}

/// Which operations a list shows. Everything set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// `None`: all workspaces, for administrators.
    pub workspace: Option<i64>,
    pub project_uuid: Option<String>,
    pub kind: Option<Kind>,
    pub verb: Option<Verb>,
    pub operation_types: Vec<String>,
    pub statuses: Vec<Status>,
    /// Internal key of the resource, together with `kind`.
    pub resource_id: Option<i64>,
    pub resource_uuid: Option<String>,
    pub created_min: Option<Timestamp>,
    pub created_max: Option<Timestamp>,
}

/// A page of operations, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub operations: Vec<Operation>,
    pub has_older: bool,
    pub has_newer: bool,
}

/// Counts stop here: a total above it is given as this number.
pub const COUNT_LIMIT: i64 = 10_000;

const OPERATIONS: &str = "SELECT o.id, o.uuid, w.uuid AS workspace_uuid, p.uuid AS project_uuid, o.kind, o.verb,
        o.operation_type, o.plan_version, o.target_state, o.resource_id, o.resource_uuid, o.resource_name,
        v.status AS resource_status, o.compose_hash, o.user_id, o.username, o.email, o.api_key_id, o.client_address,
        o.request_id, o.trace_id, o.diff, o.status, o.direction, o.step, o.sub_operations, o.deadline_at, o.error_code,
        o.error_message, o.error_internal, (SELECT f.uuid FROM operation f WHERE f.id = o.retry_of) AS retry_of,
        o.cancelled_by, o.created_at, o.started_at, o.completed_at, o.updated_at
     FROM operation o
     JOIN workspace w ON w.id = o.workspace_id
     JOIN project p ON p.id = o.project_id
     JOIN vm v ON v.id = o.resource_id";

impl Filter {
    fn push(&self, query: &mut QueryBuilder<Db>) {
        query.push(" WHERE TRUE");
        if let Some(workspace) = self.workspace {
            query.push(" AND o.workspace_id = ").push_bind(workspace);
        }
        if let Some(project) = &self.project_uuid {
            query
                .push(" AND o.project_id = (SELECT id FROM project WHERE uuid = ")
                .push_bind(project.clone())
                .push(")");
        }
        if let Some(resource) = self.resource_id {
            query.push(" AND o.resource_id = ").push_bind(resource);
        }
        let words = [
            (" AND o.kind = ", self.kind.map(|k| k.as_str().to_owned())),
            (" AND o.verb = ", self.verb.map(|v| v.as_str().to_owned())),
            (" AND o.resource_uuid = ", self.resource_uuid.clone()),
        ];
        for (column, word) in words {
            if let Some(word) = word {
                query.push(column).push_bind(word);
            }
        }
        let statuses: Vec<String> = self.statuses.iter().map(|s| s.as_str().to_owned()).collect();
        for (column, words) in
            [(" AND o.operation_type IN (", &self.operation_types), (" AND o.status IN (", &statuses)]
        {
            if !words.is_empty() {
                query.push(column);
                let mut list = query.separated(", ");
                for word in words {
                    list.push_bind(word.clone());
                }
                list.push_unseparated(")");
            }
        }
        if let Some(min) = self.created_min {
            query.push(" AND o.created_at >= ").push_bind(min.micros());
        }
        if let Some(max) = self.created_max {
            query.push(" AND o.created_at <= ").push_bind(max.micros());
        }
    }
}

impl Store {
    /// A page of at most `limit` operations.
    pub async fn operations(&self, filter: &Filter, from: From, limit: i64) -> Result<Page, Error> {
        let mut query = QueryBuilder::new(OPERATIONS);
        filter.push(&mut query);
        let (order, place) = match from {
            From::Newest => (" DESC", None),
            From::OlderThan(place) => (" DESC", Some((" < (", place))),
            From::NewerThan(place) => (" ASC", Some((" > (", place))),
        };
        if let Some((compare, place)) = place {
            query.push(" AND (o.created_at, o.id)").push(compare);
            query.push_bind(place.created_at).push(", ").push_bind(place.id).push(")");
        }
        query.push(" ORDER BY o.created_at").push(order).push(", o.id").push(order);
        query.push(" LIMIT ").push_bind(limit + 1);
        let mut operations: Vec<Operation> = query.build_query_as().fetch_all(self.read()).await.map_err(fault)?;
        let more = operations.len() as i64 > limit;
        operations.truncate(usize::try_from(limit).unwrap_or(0));
        // Whoever comes from a place knows that there is something on the other side of it.
        let (has_older, has_newer) = match from {
            From::Newest => (more, false),
            From::OlderThan(_) => (more, true),
            From::NewerThan(_) => {
                operations.reverse();
                (true, more)
            }
        };
        Ok(Page { operations, has_older, has_newer })
    }

    /// How many operations a filter matches, at most [`COUNT_LIMIT`].
    pub async fn operations_count(&self, filter: &Filter) -> Result<i64, Error> {
        let mut query = QueryBuilder::new("SELECT COUNT(*) FROM (SELECT 1 FROM operation o");
        filter.push(&mut query);
        query.push(" LIMIT ").push_bind(COUNT_LIMIT).push(") AS matching");
        query.build_query_scalar().fetch_one(self.read()).await.map_err(fault)
    }

    pub async fn operation(&self, workspace: Option<i64>, uuid: &str) -> Result<Option<Operation>, Error> {
        let mut query = QueryBuilder::new(OPERATIONS);
        query.push(" WHERE o.uuid = ").push_bind(uuid.to_owned());
        if let Some(workspace) = workspace {
            query.push(" AND o.workspace_id = ").push_bind(workspace);
        }
        query.build_query_as().fetch_optional(self.read()).await.map_err(fault)
    }

    /// The events of these operations, in order, by operation.
    pub async fn events(&self, operations: &[i64]) -> Result<HashMap<i64, Vec<Event>>, Error> {
        let mut events: HashMap<i64, Vec<Event>> = HashMap::new();
        for chunk in operations.chunks(500) {
            let mut query = QueryBuilder::new(
                "SELECT operation_id, seq, event_type, step, state, at FROM operation_event WHERE operation_id IN (",
            );
            let mut list = query.separated(", ");
            for id in chunk {
                list.push_bind(*id);
            }
            list.push_unseparated(") ORDER BY operation_id, seq");
            let rows: Vec<Event> = query.build_query_as().fetch_all(self.read()).await.map_err(fault)?;
            for event in rows {
                events.entry(event.operation_id).or_default().push(event);
            }
        }
        Ok(events)
    }
}
