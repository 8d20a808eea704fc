//! Reading operations: single ones, pages of lists ([`Filter`] says which), and the events of each.

use std::collections::HashMap;

use holdfast_model::error::Error;
use holdfast_model::operation::{Diff, Kind, Status, Verb};

pub use crate::filter::{Actor, Filter};
use crate::filter::{Lead, select_operations};
use crate::page::{COUNTED, From, Page, Place, Sort, Total};
use crate::scope::Scope;
use crate::sql::{self, Session, record};
use crate::{Store, from_json, stored};

/// An operation as the surfaces show it.
#[derive(Debug, Clone, PartialEq)]
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

record!(Operation {
    id,
    uuid,
    workspace_uuid,
    project_uuid,
    kind,
    verb,
    operation_type,
    plan_version,
    target_state,
    resource_id,
    resource_uuid,
    resource_name,
    resource_status,
    compose_hash,
    user_id,
    username,
    email,
    api_key_id,
    client_address,
    request_id,
    trace_id,
    diff,
    status,
    direction,
    step,
    sub_operations,
    deadline_at,
    error_code,
    error_message,
    error_internal,
    retry_of,
    cancelled_by,
    created_at,
    started_at,
    completed_at,
    updated_at,
});

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

    /// Where it is in a list of this order.
    pub fn place(&self, sort: &Sort) -> Place {
        let value = |column| if column == "updated_at" { self.updated_at } else { self.created_at };
        Place { values: sort.terms().iter().map(|term| value(term.column)).collect(), id: self.id }
    }
}

/// One moment of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub seq: i64,
    pub event_type: String,
    pub step: Option<String>,
    pub state: String,
    pub at: i64,
}

impl Store {
    /// A page of at most `limit` operations.
    pub async fn operations(
        &self,
        filter: &Filter,
        sort: &Sort,
        from: &From,
        limit: i64,
    ) -> Result<Page<Operation>, Error> {
        if filter.is_empty() {
            return Ok(Page::of(Vec::new(), &From::Start, limit, Total::exact(0)));
        }
        let (filter, sort, from) = (filter.clone(), sort.clone(), from.clone());
        let rows = if filter.is_range(&sort) { usize::try_from(limit).unwrap_or(usize::MAX) } else { usize::MAX };
        let reading = self.read().by_keys(rows, move |db| {
            let total = count(db, &filter)?;
            let (order, place) = from.read(&sort);
            let rows = db.all(&filter.page("", (&order, place), limit + 1, !total.is_estimate))?;
            Ok(Page::of(rows, &from, limit, total))
        });
        reading.await
    }

    /// An operation that a scope has; with `None` that of any workspace, for administrators.
    pub async fn operation(&self, scope: Option<&Scope>, uuid: &str) -> Result<Option<Operation>, Error> {
        let mut query = select_operations();
        query.push(" WHERE o.uuid = ").push_bind(uuid.to_owned());
        if let Some(scope) = scope {
            query.push(" AND ");
            scope.push(&mut query, "o");
        }
        self.read().here(|db| db.first(&query))
    }

    /// The events of these operations, in order, by operation.
    pub async fn events(&self, operations: &[i64]) -> Result<HashMap<i64, Vec<Event>>, Error> {
        let operations = operations.to_vec();
        // Each has about as many as a CVM on a page has columns.
        let reading = self.read().by_keys(operations.len(), move |db| {
            let mut all: HashMap<i64, Vec<Event>> = HashMap::with_capacity(operations.len());
            for chunk in operations.chunks(500) {
                let mut query = sql::query(
                    "SELECT operation_id, seq, event_type, step, state, at FROM operation_event WHERE operation_id IN (",
                );
                query.push_list(chunk.iter().copied()).push(") ORDER BY operation_id, seq");
                let rows: Vec<(i64, i64, String, Option<String>, String, i64)> = db.all(&query)?;
                let mut rows = rows.into_iter().peekable();
                while let Some(&(operation, ..)) = rows.peek() {
                    let own = std::iter::from_fn(|| rows.next_if(|row| row.0 == operation));
                    let event = |(_, seq, event_type, step, state, at)| Event { seq, event_type, step, state, at };
                    all.insert(operation, own.map(event).collect());
                }
            }
            Ok(all)
        });
        reading.await
    }
}

/// How many operations a filter matches. An estimate follows the keys: those that would be counted reach from the newest
/// of the filter's index range down to some key, and the range goes on to its oldest.
fn count(db: &Session, filter: &Filter) -> Result<Total, Error> {
    if filter.lead() == Lead::Name {
        return count_by_name(db, filter);
    }
    // Going past them is far cheaper than counting them, and most lists are long.
    let Some((lowest, _)) = db.first::<(i64, i64)>(&filter.uncounted(""))? else {
        let (count,) = db.one(&filter.count(""))?;
        return Ok(Total::exact(count));
    };
    let (mut newest, mut oldest) = (lowest, lowest);
    for word in filter.counted_words() {
        for is_newest in [true, false] {
            let Some((id, _)) = db.first::<(i64, i64)>(&filter.end("", word, is_newest))? else { continue };
            newest = newest.max(id);
            oldest = oldest.min(id);
        }
    }
    Ok(Total::estimate(COUNTED + 1, newest - lowest + 1, newest - oldest + 1))
}

/// The same for a name prefix, whose ruler is the names: of the last one that was reached, half.
fn count_by_name(db: &Session, filter: &Filter) -> Result<Total, Error> {
    let (count, last): (i64, String) = db.one(&filter.count_by_name(""))?;
    if count <= COUNTED {
        return Ok(Total::exact(count));
    }
    let (whole, covered): (i64, i64) = db.one(&filter.names(&last))?;
    Ok(Total::estimate(count, 2 * covered - 1, 2 * whole))
}
