//! Which operations a list shows, and the SQL that finds them.
//!
//! The one rule: whatever is asked, one index leads ([`Lead`]), and the rest is looked at row by row. The choice is made
//! here and not left to the database, which does not know how rare a failed operation is: a column that must not lead is
//! written as an expression (`o.user_id + 0`), which no index serves. Several words for one column are as many ranges of
//! the index, merged in order, so a page of any list is read without sorting.
//!
//! Two lists have no index in their order. A name prefix goes through the names that begin so, takes the newest of each,
//! and sorts those: it costs what there are names, not what there are operations. A list by `updated_at` is walked in
//! that order when many match, and sorted when few ([`crate::page::COUNTED`]) do.

use crate::page::{COUNTED, Place, Sort, Spelling, number, push_any, text};
use crate::scope::Scope;
use crate::sql::{self, Query};
use holdfast_engine::ops;
use holdfast_model::Timestamp;
use holdfast_model::operation::{Kind, Status, Verb};

/// Which operations of a scope a list shows. Everything set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    pub scope: Scope,
    pub project_uuid: Option<String>,
    /// Public id, which is Phala's correlation id.
    pub uuid: Option<String>,
    pub kind: Option<Kind>,
    pub verb: Option<Verb>,
    /// Any of these.
    pub operation_types: Vec<String>,
    /// Any of these.
    pub statuses: Vec<Status>,
    /// Internal key of the resource, together with `kind`.
    pub resource_id: Option<i64>,
    pub resource_uuid: Option<String>,
    pub actor: Option<Actor>,
    /// Beginning of the resource's name at the time.
    pub name_prefix: Option<String>,
    pub created_min: Option<Timestamp>,
    pub created_max: Option<Timestamp>,
    /// Asks for what no operation is.
    pub nothing: bool,
}

/// Who asked for an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// Internal key.
    Id(i64),
    Uuid(String),
    Username(String),
}

/// The index that a list is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    Uuid,
    Resource,
    Status,
    Name,
    Actor,
    Type,
    Project,
    Created,
    Updated,
}

/// What the leading column is in one range of its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word<'a> {
    /// What the filter itself says of the column, if anything.
    Any,
    Text(&'a str),
    Project(i64),
}

/// Each once and in order.
fn words_of(mut texts: Vec<&str>) -> Vec<Word<'_>> {
    texts.sort_unstable();
    texts.dedup();
    texts.into_iter().map(Word::Text).collect()
}

fn texts<'a>(words: &[Word<'a>]) -> Vec<&'a str> {
    let text = |word: &Word<'a>| if let Word::Text(text) = word { Some(*text) } else { None };
    words.iter().filter_map(text).collect()
}

const LIST: &str = "SELECT o.id AS id, o.uuid, w.uuid AS workspace_uuid, p.uuid AS project_uuid, o.kind, o.verb,
        o.operation_type, o.plan_version, o.target_state, o.resource_id, o.resource_uuid, o.resource_name,
        v.status AS resource_status, o.compose_hash, o.user_id, o.username, o.email, o.api_key_id, o.client_address,
        o.request_id, o.trace_id, o.diff, o.status, o.direction, o.step, o.sub_operations, o.deadline_at, o.error_code,
        o.error_message, o.error_internal, (SELECT f.uuid FROM operation f WHERE f.id = o.retry_of) AS retry_of,
        o.cancelled_by, o.created_at AS created_at, o.started_at, o.completed_at, o.updated_at AS updated_at
     FROM operation o
     JOIN workspace w ON w.id = o.workspace_id
     JOIN project p ON p.id = o.project_id
     JOIN vm v ON v.id = o.resource_id";

const IDS: &str = "SELECT o.id AS id, o.created_at AS created_at FROM operation o";

/// Begins a query of whole operations.
pub(crate) fn select_operations() -> Query {
    sql::query(LIST)
}

/// No name that begins with the prefix comes after this.
fn end_of(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

impl Filter {
    /// True when it cannot match anything, without looking.
    pub(crate) fn is_empty(&self) -> bool {
        let nowhere = self.scope.projects().is_some_and(<[i64]>::is_empty);
        nowhere || self.nothing || self.types().is_some_and(|types| types.is_empty())
    }

    /// Kind, type and operation types as the operation types that the index knows; `None`: all of them. An operation
    /// type belongs to one kind and one type, as its plan says.
    fn types(&self) -> Option<Vec<&str>> {
        let kind = self.kind.filter(|_| self.resource_id.is_none());
        if kind.is_none() && self.verb.is_none() {
            let given: Vec<&str> = self.operation_types.iter().map(String::as_str).collect();
            return (!given.is_empty()).then_some(given);
        }
        let asked = |name: &str| self.operation_types.is_empty() || self.operation_types.iter().any(|t| t == name);
        let plans = ops::ALL.into_iter().filter(|plan| {
            kind.is_none_or(|k| k == plan.kind) && self.verb.is_none_or(|v| v == plan.verb) && asked(plan.name)
        });
        Some(plans.map(|plan| plan.name).collect())
    }

    /// The index to read in the order of acceptance: the one that is likely to hold the fewest.
    pub(crate) fn lead(&self) -> Lead {
        let open = self.statuses.is_empty();
        if self.uuid.is_some() {
            Lead::Uuid
        } else if self.resource_id.is_some() || self.resource_uuid.is_some() {
            Lead::Resource
        } else if !open && !self.statuses.contains(&Status::Done) {
            Lead::Status
        } else if self.scope.projects().is_some() {
            // What is known of the others is known of the whole workspace; these hold what they let through and no more.
            Lead::Project
        } else if self.name_prefix.is_some() {
            Lead::Name
        } else if self.actor.is_some() {
            Lead::Actor
        } else if self.types().is_some() {
            Lead::Type
        } else if self.project_uuid.is_some() {
            Lead::Project
        } else if !open {
            Lead::Status
        } else {
            Lead::Created
        }
    }

    /// The index to read in the order of `sort`. `few` tells that sorting all that match is cheap.
    fn lead_by(&self, sort: &Sort, few: bool) -> Lead {
        let lead = self.lead();
        let bounded = few || matches!(lead, Lead::Uuid | Lead::Resource);
        let walk = sort.leads_with("updated_at") && (lead == Lead::Created || !bounded);
        if walk { Lead::Updated } else { lead }
    }

    /// True for a list that is one range of its index and nothing to look at besides: as many rows are met as are shown,
    /// and as are counted at the most.
    pub(crate) fn is_range(&self, sort: &Sort) -> bool {
        self.lead_by(sort, true) == Lead::Created
    }

    /// What the leading column may be, each a range of its index.
    fn words(&self, lead: Lead) -> Vec<Word<'_>> {
        match (lead, self.scope.projects()) {
            (Lead::Status, _) => words_of(self.statuses.iter().map(|s| s.as_str()).collect()),
            (Lead::Type, _) => words_of(self.types().unwrap_or_default()),
            (Lead::Project, Some(projects)) if self.project_uuid.is_none() => {
                projects.iter().copied().map(Word::Project).collect()
            }
            _ => vec![Word::Any],
        }
    }

    /// The conditions of some words of the leading column. With `bare` only those that the index itself answers, and what
    /// the caller sees.
    fn push(&self, query: &mut Query, lead: Lead, words: &[Word<'_>], bare: bool) {
        let of_workspace = !matches!(lead, Lead::Uuid | Lead::Resource | Lead::Project);
        query.push(" WHERE TRUE").push(number("o.workspace_id", of_workspace));
        query.push(" = ").push_bind(self.scope.workspace());
        match words {
            [Word::Text(_), ..] => {
                let column = if lead == Lead::Status { "o.status" } else { "o.operation_type" };
                push_any(query, &text(column, true), &texts(words));
            }
            [Word::Project(project)] => {
                query.push(number("o.project_id", true)).push(" = ").push_bind(*project);
            }
            [Word::Project(_), ..] => self.scope.push_projects(query, &number("o.project_id", true)),
            _ => self.scope.push_projects(query, &number("o.project_id", false)),
        }
        let in_order = !matches!(lead, Lead::Uuid | Lead::Updated);
        if let Some(min) = self.created_min {
            query.push(number("o.created_at", in_order)).push(" >= ").push_bind(min.micros());
        }
        if let Some(max) = self.created_max {
            query.push(number("o.created_at", in_order)).push(" <= ").push_bind(max.micros());
        }
        let keep = |this: Lead| lead == this || !bare;
        if let Some(uuid) = self.uuid.as_ref().filter(|_| keep(Lead::Uuid)) {
            query.push(text("o.uuid", lead == Lead::Uuid)).push(" = ").push_bind(uuid.clone());
        }
        self.push_resource(query, lead, keep(Lead::Resource));
        if let Some(project) = self.project_uuid.as_ref().filter(|_| keep(Lead::Project)) {
            query.push(number("o.project_id", lead == Lead::Project));
            query.push(" = (SELECT id FROM project WHERE uuid = ").push_bind(project.clone()).push(")");
        }
        if let Some(actor) = self.actor.as_ref().filter(|_| keep(Lead::Actor)) {
            query.push(number("o.user_id", lead == Lead::Actor)).push(" = ");
            let (column, word) = match actor {
                Actor::Id(id) => {
                    query.push_bind(*id);
                    ("", "")
                }
                Actor::Uuid(uuid) => ("uuid", uuid.as_str()),
                Actor::Username(name) => ("username", name.as_str()),
            };
            if !column.is_empty() {
                query
                    .push(format!("(SELECT id FROM user_account WHERE {column} = "))
                    .push_bind(word.to_owned())
                    .push(")");
            }
        }
        if bare {
            return;
        }
        if let Some(prefix) = self.name_prefix.as_ref().filter(|_| lead != Lead::Name) {
            query.push(text("o.resource_name", false)).push(" >= ").push_bind(prefix.clone());
            query.push(text("o.resource_name", false)).push(" < ").push_bind(end_of(prefix));
        }
        if !self.statuses.is_empty() && lead != Lead::Status {
            push_any(query, &text("o.status", false), &texts(&self.words(Lead::Status)));
        }
        if let Some(types) = self.types().filter(|_| lead != Lead::Type) {
            push_any(query, &text("o.operation_type", false), &types);
        }
    }

    fn push_resource(&self, query: &mut Query, lead: Lead, keep: bool) {
        if !keep {
            return;
        }
        let leads = lead == Lead::Resource;
        if let Some(resource) = self.resource_id {
            query.push(number("o.resource_id", leads)).push(" = ").push_bind(resource);
            if let Some(kind) = self.kind {
                query.push(text("o.kind", leads)).push(" = ").push_bind(kind.as_str().to_owned());
            }
        }
        if let Some(uuid) = &self.resource_uuid {
            // Only CVMs have operations; every further kind has its rows in a table of its own.
            query.push(text("o.kind", leads)).push(" = 'vm'").push(number("o.resource_id", leads));
            query.push(" = (SELECT id FROM vm WHERE uuid = ").push_bind(uuid.clone()).push(")");
        }
    }

    /// The names in the workspace that begin with the prefix, each found by one step in the index.
    fn push_names(&self, query: &mut Query, most: Option<i64>) {
        let prefix = self.name_prefix.clone().unwrap_or_default();
        let end = end_of(&prefix);
        query.push("WITH RECURSIVE name(number, value) AS (SELECT 1, MIN(resource_name) FROM operation");
        query.push(" WHERE workspace_id = ").push_bind(self.scope.workspace());
        query.push(" AND resource_name >= ").push_bind(prefix).push(" AND resource_name < ").push_bind(end.clone());
        query
            .push(" UNION ALL SELECT name.number + 1, (SELECT MIN(resource_name) FROM operation WHERE workspace_id = ");
        query
            .push_bind(self.scope.workspace())
            .push(" AND resource_name > name.value AND resource_name < ")
            .push_bind(end);
        query.push(") FROM name WHERE name.value IS NOT NULL");
        if let Some(most) = most {
            query.push(" AND name.number < ").push_bind(most);
        }
        query.push(") ");
    }

    /// The query of a page of at most `limit` rows, read in `order` after `place`. `before` is put in front of it.
    pub(crate) fn page(&self, before: &str, (order, place): (&Sort, Option<&Place>), limit: i64, few: bool) -> Query {
        let mut query = sql::query(before.to_owned());
        let lead = self.lead_by(order, few);
        // An order that the leading index does not have must not tempt the database to another index.
        let sorted = lead != Lead::Updated && order.leads_with("updated_at");
        let spell: Spelling =
            if sorted { |column| format!("(o.{column} + 0)") } else { |column| format!("o.{column}") };
        let after = |query: &mut Query| {
            if let Some(place) = place {
                order.push_after(query, spell, place);
            }
        };
        let words = self.words(lead);
        let ranges: Vec<&[Word<'_>]> = if sorted { vec![&words] } else { words.chunks(1).collect() };
        for (i, range) in ranges.iter().enumerate() {
            query.push(if i == 0 { "" } else { " UNION ALL " }).push(LIST);
            if lead == Lead::Name {
                query.push(" WHERE o.id IN (");
                self.push_names(&mut query, None);
                query.push("SELECT i.id FROM name JOIN operation i ON i.id IN (SELECT o.id FROM operation o");
                self.push(&mut query, lead, range, false);
                query.push(" AND o.resource_name = name.value");
                after(&mut query);
                query.push(" ORDER BY ").push(order.order_by(spell)).push(" LIMIT ").push_bind(limit);
                query.push(") ORDER BY ").push(order.order_by(|column| format!("i.{column}")));
                query.push(" LIMIT ").push_bind(limit).push(")");
            } else {
                self.push(&mut query, lead, range, false);
                after(&mut query);
            }
        }
        // Ranges that are merged are ordered by what they give, not by their tables' columns.
        let spell = if ranges.len() > 1 { str::to_owned } else { spell };
        query.push(" ORDER BY ").push(order.order_by(spell)).push(" LIMIT ").push_bind(limit);
        query
    }

    /// The query that counts what matches, when it is known to be no more than [`COUNTED`].
    pub(crate) fn count(&self, before: &str) -> Query {
        let mut query = sql::query(before.to_owned());
        query.push("SELECT COUNT(*) FROM (");
        self.push_ids(&mut query);
        // The order says which index, as it does for the page.
        query.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(COUNTED).push(") AS matching");
        query
    }

    /// The query of the one that is too many to be counted, newest first: (key, time), or nothing when there is none.
    pub(crate) fn uncounted(&self, before: &str) -> Query {
        let mut query = sql::query(before.to_owned());
        self.push_ids(&mut query);
        query.push(" ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ").push_bind(COUNTED);
        query
    }

    fn push_ids(&self, query: &mut Query) {
        for (i, range) in self.words(self.lead()).chunks(1).enumerate() {
            query.push(if i == 0 { "" } else { " UNION ALL " }).push(IDS);
            self.push(query, self.lead(), range, false);
        }
    }

    /// The query of the key at one end of a word's range, as the index itself has it.
    pub(crate) fn end(&self, before: &str, word: Word<'_>, newest: bool) -> Query {
        let mut query = sql::query(before.to_owned());
        query.push(IDS);
        self.push(&mut query, self.lead(), &[word], true);
        let order = if newest { "created_at DESC, id DESC" } else { "created_at ASC, id ASC" };
        query.push(" ORDER BY ").push(order).push(" LIMIT 1");
        query
    }

    /// The words whose ranges are counted.
    pub(crate) fn counted_words(&self) -> Vec<Word<'_>> {
        self.words(self.lead())
    }

    /// For a name prefix, which has no order of acceptance: the first that match in the order of names, up to one more
    /// than [`COUNTED`], and the last name among them.
    pub(crate) fn count_by_name(&self, before: &str) -> Query {
        let prefix = self.name_prefix.clone().unwrap_or_default();
        let mut query = sql::query(before.to_owned());
        query.push("SELECT COUNT(*), COALESCE(MAX(value), '') FROM (SELECT o.resource_name AS value FROM operation o");
        self.push(&mut query, Lead::Name, &[], false);
        query.push(" AND o.resource_name < ").push_bind(end_of(&prefix));
        query.push(" AND o.resource_name >= ").push_bind(prefix);
        query.push(" ORDER BY o.resource_name LIMIT ").push_bind(COUNTED + 1).push(") AS first");
        query
    }

    /// How many names there are, and how many of them up to `last`: (whole, covered). Counting ends at [`COUNTED`].
    pub(crate) fn names(&self, last: &str) -> Query {
        let mut query = sql::query("");
        self.push_names(&mut query, Some(COUNTED));
        query.push("SELECT COUNT(value), COALESCE(SUM(CASE WHEN value <= ").push_bind(last.to_owned());
        query.push(" THEN 1 ELSE 0 END), 0) FROM name");
        query
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
