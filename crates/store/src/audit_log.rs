//! Reading the audit log: entries, and pages of them.
//!
//! The one rule is that of the lists of operations (`filter.rs`): one index leads, the rest is looked at row by row. A
//! range of status codes is as many ranges of the index as it has codes.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::Store;
use crate::page::{COUNTED, From, Page, Place, Sort, Spelling, Total, number, text};
use crate::scope::Scope;
use crate::sql::{self, Query, Session, record};

/// One request that changed something, or was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: i64,
    pub uuid: String,
    pub actor_type: String,
    pub actor_id: String,
    pub actor_name: String,
    /// Public id of the API key.
    pub api_key_uuid: Option<String>,
    pub client_address: Option<String>,
    pub request_id: String,
    pub method: String,
    pub path: String,
    pub status_code: i64,
    pub action: String,
    target_type: String,
    target_id: String,
    pub operation_uuid: Option<String>,
    pub user_agent: String,
    pub at: i64,
}

record!(Entry {
    id,
    uuid,
    actor_type,
    actor_id,
    actor_name,
    api_key_uuid,
    client_address,
    request_id,
    method,
    path,
    status_code,
    action,
    target_type,
    target_id,
    operation_uuid,
    user_agent,
    at,
});

impl Entry {
    /// What it was about, as (type, public id), when that is known.
    pub fn target(&self) -> Option<(&str, &str)> {
        (!self.target_id.is_empty()).then_some((&self.target_type, &self.target_id))
    }

    /// Where it is in a list of this order.
    pub fn place(&self, sort: &Sort) -> Place {
        let value = |column| if column == "status_code" { self.status_code } else { self.at };
        Place { values: sort.terms().iter().map(|term| value(term.column)).collect(), id: self.id }
    }
}

/// Which entries of a scope a list shows. Everything set must hold. Whoever is limited to projects sees what is about
/// something in them: what is about the workspace, and what was refused, is in none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    pub scope: Scope,
    pub action: Option<String>,
    pub actor_id: Option<String>,
    pub actor_type: Option<String>,
    pub client_address: Option<String>,
    pub created_min: Option<Timestamp>,
    pub created_max: Option<Timestamp>,
    pub method: Option<String>,
    /// Anywhere in the path.
    pub path_part: Option<String>,
    pub status_min: Option<i64>,
    pub status_max: Option<i64>,
    pub target_id: Option<String>,
    pub target_type: Option<String>,
    pub operation_uuid: Option<String>,
    pub request_id: Option<String>,
}

/// The index that a list is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    Operation,
    Request,
    Target,
    Project,
    Status,
    Actor,
    Created,
    /// In the order of status codes.
    ByStatus,
}

const COLUMNS: &str = "SELECT a.id AS id, a.uuid, a.actor_type, a.actor_id, a.actor_name, k.uuid AS api_key_uuid,
        a.client_address, a.request_id, a.method, a.path, COALESCE(a.status_code, 0) AS status_code, a.action,
        a.target_type, a.target_id, a.operation_uuid, a.user_agent, a.at AS at
     FROM audit_log a LEFT JOIN api_key k ON k.id = a.api_key_id";

impl Filter {
    /// The index to read in the order of time: the one that is likely to hold the fewest.
    fn lead(&self) -> Lead {
        if self.operation_uuid.is_some() {
            Lead::Operation
        } else if self.request_id.is_some() {
            Lead::Request
        } else if self.target_id.is_some() {
            Lead::Target
        } else if self.scope.projects().is_some() {
            Lead::Project
        } else if self.status_min.is_some() || self.status_max.is_some() {
            Lead::Status
        } else if self.actor_id.is_some() {
            Lead::Actor
        } else {
            Lead::Created
        }
    }

    /// The conditions of one range; `key` is its status code or project. With `bare` only those that the index itself
    /// answers, and what the caller sees.
    fn push(&self, query: &mut Query, lead: Lead, key: i64, bare: bool) {
        let of_workspace = !matches!(lead, Lead::Operation | Lead::Request | Lead::Project);
        query.push(" WHERE TRUE").push(number("a.workspace_id", of_workspace));
        query.push(" = ").push_bind(self.scope.workspace());
        if lead == Lead::Status {
            query.push(number("a.status_code", true)).push(" = ").push_bind(key);
        }
        if lead == Lead::Project {
            query.push(number("a.project_id", true)).push(" = ").push_bind(key);
        } else {
            self.scope.push_projects(query, &number("a.project_id", false));
        }
        let in_order = lead != Lead::ByStatus;
        if let Some(min) = self.created_min {
            query.push(number("a.at", in_order)).push(" >= ").push_bind(min.micros());
        }
        if let Some(max) = self.created_max {
            query.push(number("a.at", in_order)).push(" <= ").push_bind(max.micros());
        }
        let words = [
            ("a.operation_uuid", &self.operation_uuid, lead == Lead::Operation),
            ("a.request_id", &self.request_id, lead == Lead::Request),
            ("a.target_id", &self.target_id, lead == Lead::Target),
            ("a.actor_id", &self.actor_id, lead == Lead::Actor),
            ("a.action", &self.action, false),
            ("a.actor_type", &self.actor_type, false),
            ("a.client_address", &self.client_address, false),
            ("a.method", &self.method, false),
            ("a.target_type", &self.target_type, false),
        ];
        for (column, word, leads) in words {
            if let Some(word) = word.as_ref().filter(|_| leads || !bare) {
                query.push(text(column, leads)).push(" = ").push_bind(word.clone());
            }
        }
        if bare {
            return;
        }
        if let Some(part) = &self.path_part {
            query.push(" AND REPLACE(a.path, ").push_bind(part.clone()).push(", '') <> a.path");
        }
        if lead != Lead::Status {
            for (bound, compare) in [(self.status_min, " >= "), (self.status_max, " <= ")] {
                if let Some(code) = bound {
                    query.push(number("a.status_code", lead == Lead::ByStatus)).push(compare).push_bind(code);
                }
            }
        }
    }

    /// The query of a page of at most `limit` rows, read in `order` after `place`.
    fn page(
        &self,
        before: &str,
        (order, place): (&Sort, Option<&Place>),
        (limit, few): (i64, bool),
        keys: &[i64],
    ) -> Query {
        let by_status = order.leads_with("status_code");
        let bounded = few || matches!(self.lead(), Lead::Operation | Lead::Request);
        let walk = by_status && (matches!(self.lead(), Lead::Created | Lead::Status) || !bounded);
        let (lead, keys) = if walk { (Lead::ByStatus, &[0][..]) } else { (self.lead(), keys) };
        // An order that the leading index does not have must not tempt the database to another index.
        let sorted = by_status && !walk;
        let spell: Spelling =
            if sorted { |column| format!("(a.{column} + 0)") } else { |column| format!("a.{column}") };
        let mut query = sql::query(before.to_owned());
        for (i, key) in keys.iter().enumerate() {
            query.push(if i == 0 { "" } else { " UNION ALL " }).push(COLUMNS);
            self.push(&mut query, lead, *key, false);
            if let Some(place) = place {
                order.push_after(&mut query, spell, place);
            }
        }
        let spell = if keys.len() > 1 { str::to_owned } else { spell };
        query.push(" ORDER BY ").push(order.order_by(spell)).push(" LIMIT ").push_bind(limit);
        query
    }

    /// The query that counts the newest that match, up to one more than [`COUNTED`]: (count, lowest key).
    fn count(&self, before: &str, keys: &[i64]) -> Query {
        let mut query = sql::query(before.to_owned());
        query.push("SELECT COUNT(*), COALESCE(MIN(id), 0) FROM (");
        for (i, key) in keys.iter().enumerate() {
            query.push(if i == 0 { "" } else { " UNION ALL " });
            query.push("SELECT a.id AS id, a.at AS at FROM audit_log a");
            self.push(&mut query, self.lead(), *key, false);
        }
        query.push(" ORDER BY at DESC, id DESC LIMIT ").push_bind(COUNTED + 1).push(") AS newest");
        query
    }

    /// The query of the key at one end of a range.
    fn end(&self, key: i64, newest: bool) -> Query {
        let mut query = sql::query("SELECT a.id FROM audit_log a");
        self.push(&mut query, self.lead(), key, true);
        query.push(if newest { " ORDER BY a.at DESC, a.id DESC" } else { " ORDER BY a.at, a.id" }).push(" LIMIT 1");
        query
    }

    /// The query of the status codes that the workspace has within the bounds, each found by one step in the index.
    fn codes(&self) -> Query {
        let mut query = sql::query("WITH RECURSIVE code(value) AS (SELECT MIN(status_code) FROM audit_log");
        query.push(" WHERE workspace_id = ").push_bind(self.scope.workspace());
        query.push(" AND status_code >= ").push_bind(self.status_min.unwrap_or(0));
        query.push(" UNION ALL SELECT (SELECT MIN(status_code) FROM audit_log WHERE workspace_id = ");
        query.push_bind(self.scope.workspace()).push(" AND status_code > code.value) FROM code WHERE code.value <= ");
        query.push_bind(self.status_max.unwrap_or(999)).push(") SELECT value FROM code WHERE value <= ");
        query.push_bind(self.status_max.unwrap_or(999));
        query
    }
}

impl Store {
    /// A page of at most `limit` entries. An order by status code needs `at` as its second term: the index has it so.
    pub async fn audit_log(&self, filter: &Filter, sort: &Sort, from: &From, limit: i64) -> Result<Page<Entry>, Error> {
        let (filter, sort, from) = (filter.clone(), sort.clone(), from.clone());
        let reading = self.read().aside(move |db| {
            let keys: Vec<i64> = match filter.lead() {
                Lead::Status => db.all(&filter.codes())?.into_iter().map(|(code,)| code).collect(),
                Lead::Project => filter.scope.projects().unwrap_or_default().to_vec(),
                _ => vec![0],
            };
            if keys.is_empty() {
                return Ok(Page::of(Vec::new(), &From::Start, limit, Total::exact(0)));
            }
            let total = count(db, &filter, &keys)?;
            let (order, place) = from.read(&sort);
            let rows = db.all(&filter.page("", (&order, place), (limit + 1, !total.is_estimate), &keys))?;
            Ok(Page::of(rows, &from, limit, total))
        });
        reading.await
    }

    /// One entry that a scope has.
    pub async fn audit_entry(&self, scope: &Scope, uuid: &str) -> Result<Option<Entry>, Error> {
        let mut query = sql::query(COLUMNS);
        query.push(" WHERE a.uuid = ").push_bind(uuid.to_owned());
        query.push(" AND ");
        scope.push(&mut query, "a");
        self.read().here(|db| db.first(&query))
    }

    /// Every request that made or changed an operation, oldest first.
    pub async fn operation_requests(&self, operation_uuid: &str) -> Result<Vec<Entry>, Error> {
        let mut query = sql::query(COLUMNS);
        query.push(" WHERE a.operation_uuid = ").push_bind(operation_uuid.to_owned()).push(" ORDER BY a.at, a.id");
        self.read().here(|db| db.all(&query))
    }
}

fn count(db: &Session, filter: &Filter, keys: &[i64]) -> Result<Total, Error> {
    let (count, lowest): (i64, i64) = db.one(&filter.count("", keys))?;
    if count <= COUNTED {
        return Ok(Total::exact(count));
    }
    let (mut newest, mut oldest) = (lowest, lowest);
    for key in keys {
        for is_newest in [true, false] {
            let id = db.first(&filter.end(*key, is_newest))?.map_or(lowest, |(id,)| id);
            newest = newest.max(id);
            oldest = oldest.min(id);
        }
    }
    Ok(Total::estimate(count, newest - lowest + 1, newest - oldest + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Term;

    const EXPLAIN: &str = "EXPLAIN QUERY PLAN ";

    fn plan(store: &Store, query: Query) -> Vec<String> {
        let rows: Vec<(i64, i64, i64, String)> = store.read().here(|db| db.all(&query)).expect("a plan");
        rows.into_iter().map(|(.., step)| step).collect()
    }

    #[tokio::test]
    async fn pages_are_read_from_an_index() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).await.expect("a database");
        let word = || Some("w".to_owned());
        let filter = || Filter { scope: Scope::whole(1), ..Filter::default() };
        let limited = |projects: &[i64]| Filter { scope: Scope::of(1, Some(projects)), ..Filter::default() };
        let cases = [
            (filter(), "audit_log_by_workspace"),
            (Filter { action: word(), method: word(), path_part: word(), ..filter() }, "audit_log_by_workspace"),
            (Filter { created_min: Some(Timestamp(1)), client_address: word(), ..filter() }, "audit_log_by_workspace"),
            (Filter { status_min: Some(400), status_max: Some(499), ..filter() }, "audit_log_by_status"),
            (Filter { actor_id: word(), actor_type: word(), ..filter() }, "audit_log_by_actor"),
            (
                Filter { target_id: word(), target_type: word(), status_min: Some(400), ..filter() },
                "audit_log_by_target",
            ),
            (Filter { operation_uuid: word(), ..filter() }, "audit_log_by_operation_uuid"),
            (Filter { request_id: word(), actor_id: word(), ..filter() }, "audit_log_by_request"),
            (limited(&[1]), "audit_log_by_project"),
            (Filter { status_min: Some(400), actor_id: word(), ..limited(&[1, 2]) }, "audit_log_by_project"),
            (Filter { operation_uuid: word(), ..limited(&[1, 2]) }, "audit_log_by_operation_uuid"),
        ];
        for (filter, index) in cases {
            for (column, few) in [("at", false), ("status_code", false), ("status_code", true)] {
                for descending in [true, false] {
                    let sort = Sort::new(vec![Term { column, descending }]).expect("an order").then("at");
                    let place = Place { values: vec![5; sort.terms().len()], id: 5 };
                    let query = filter.page(EXPLAIN, (&sort, Some(&place)), (51, few), &[403, 404]);
                    let steps = plan(&store, query);
                    let bounded = matches!(filter.lead(), Lead::Operation | Lead::Request);
                    let led = column == "at" || bounded || (few && filter.lead() != Lead::Created);
                    let index = if led { index } else { "audit_log_by_status" };
                    let reads: Vec<_> = steps.iter().filter(|s| s.contains(" a ")).collect();
                    assert!(
                        !reads.is_empty() && reads.iter().all(|s| s.contains(&format!("INDEX {index} "))),
                        "{steps:?}"
                    );
                    let sorts = steps.iter().any(|s| s.contains("TEMP B-TREE"));
                    assert!(!sorts || (column == "status_code" && (few || bounded)), "{filter:?}: {steps:?}");
                }
            }
            let steps = plan(&store, filter.count(EXPLAIN, &[403]));
            assert!(steps.iter().any(|s| s.contains(&format!("INDEX {index} "))), "{steps:?}");
            assert!(!steps.iter().any(|s| s.contains("TEMP B-TREE")), "{steps:?}");
        }
    }
}
