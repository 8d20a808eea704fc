//! Reading operations: single ones, pages of lists ([`Filter`] says which), and the events of each.

use std::collections::HashMap;

use holdfast_model::error::Error;
use holdfast_model::operation::{Diff, Kind, Status, Verb};
use sqlx::QueryBuilder;

pub use crate::filter::{Actor, Filter};
use crate::filter::{Lead, select_operations};
use crate::page::{COUNTED, From, Page, Place, Sort, Total};
use crate::{Store, fault, from_json, stored};

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

impl Event {
    /// From the words of [`Store::events`]; types, steps and states are words without spaces and commas.
    fn read(words: &str) -> Result<Self, Error> {
        let mut words = words.split(' ');
        let mut next = || words.next().ok_or_else(|| Error::internal("an event lacks a word"));
        let (seq, event_type, step, state, at) = (next()?, next()?, next()?, next()?, next()?);
        Ok(Self {
            seq: seq.parse().map_err(Error::internal)?,
            event_type: event_type.to_owned(),
            step: (!step.is_empty()).then(|| step.to_owned()),
            state: state.to_owned(),
            at: at.parse().map_err(Error::internal)?,
        })
    }
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
        let total = self.operations_count(filter).await?;
        let (order, place) = from.read(sort);
        let mut query = filter.page("", (&order, place), limit + 1, !total.is_estimate);
        let rows = query.build_query_as().fetch_all(self.read()).await.map_err(fault)?;
        Ok(Page::of(rows, from, limit, total))
    }

    /// How many operations a filter matches. An estimate follows the keys: the rows that were counted reach from the
    /// newest of the filter's index range down to some key, and the range goes on to its oldest.
    async fn operations_count(&self, filter: &Filter) -> Result<Total, Error> {
        if filter.lead() == Lead::Name {
            return self.operations_count_by_name(filter).await;
        }
        let mut query = filter.count("");
        let (count, lowest): (i64, i64) = query.build_query_as().fetch_one(self.read()).await.map_err(fault)?;
        if count <= COUNTED {
            return Ok(Total::exact(count));
        }
        let (mut newest, mut oldest) = (lowest, lowest);
        for word in filter.counted_words() {
            for is_newest in [true, false] {
                let mut query = filter.end("", word, is_newest);
                let end: Option<(i64, i64)> =
                    query.build_query_as().fetch_optional(self.read()).await.map_err(fault)?;
                let Some((id, _)) = end else { continue };
                newest = newest.max(id);
                oldest = oldest.min(id);
            }
        }
        Ok(Total::estimate(count, newest - lowest + 1, newest - oldest + 1))
    }

    /// The same for a name prefix, whose ruler is the names: of the last one that was reached, half.
    async fn operations_count_by_name(&self, filter: &Filter) -> Result<Total, Error> {
        let mut query = filter.count_by_name("");
        let (count, last): (i64, String) = query.build_query_as().fetch_one(self.read()).await.map_err(fault)?;
        if count <= COUNTED {
            return Ok(Total::exact(count));
        }
        let mut query = filter.names(&last);
        let (whole, covered): (i64, i64) = query.build_query_as().fetch_one(self.read()).await.map_err(fault)?;
        Ok(Total::estimate(count, 2 * covered - 1, 2 * whole))
    }

    pub async fn operation(&self, workspace: Option<i64>, uuid: &str) -> Result<Option<Operation>, Error> {
        let mut query = select_operations();
        query.push(" WHERE o.uuid = ").push_bind(uuid.to_owned());
        if let Some(workspace) = workspace {
            query.push(" AND o.workspace_id = ").push_bind(workspace);
        }
        query.build_query_as().fetch_optional(self.read()).await.map_err(fault)
    }

    /// The events of these operations, in order, by operation. A row per operation: handing rows over costs more than
    /// reading them.
    pub async fn events(&self, operations: &[i64]) -> Result<HashMap<i64, Vec<Event>>, Error> {
        let mut events = HashMap::new();
        for chunk in operations.chunks(500) {
            let mut query = QueryBuilder::new(
                "SELECT operation_id, string_agg(seq || ' ' || event_type || ' ' || COALESCE(step, '') || ' ' || state
                    || ' ' || at, ',' ORDER BY seq) FROM operation_event WHERE operation_id IN (",
            );
            let mut list = query.separated(", ");
            for id in chunk {
                list.push_bind(*id);
            }
            list.push_unseparated(") GROUP BY operation_id");
            let rows: Vec<(i64, String)> = query.build_query_as().fetch_all(self.read()).await.map_err(fault)?;
            for (id, line) in rows {
                events.insert(id, line.split(',').map(Event::read).collect::<Result<_, _>>()?);
            }
        }
        Ok(events)
    }
}
