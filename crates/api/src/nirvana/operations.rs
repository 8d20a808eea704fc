//! `GET /v1/operations` and `/v1/operations/{operation_id}` (seed page 004).

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use holdfast_control::cursor::Listed;
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::operation::{Kind, Status, Value, Verb};
use holdfast_store::history::{self, Filter};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params};
use crate::json::Json;

/// An operation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = nirvana::Operation)]
pub struct Operation {
    /// Unique identifier of the operation.
    pub id: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    pub details: OperationDetails,
    /// `vm`, `volume`, `vpc`, `firewall_rule`, `nks_cluster` or `nks_node_pool`.
    pub kind: &'static str,
    pub project_id: String,
    pub resource_id: String,
    /// `pending`, `running`, `done`, `failed` or `unknown`.
    pub status: &'static str,
    /// `create`, `update`, `delete` or `restart`.
    pub r#type: &'static str,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// What an operation changes.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationDetails {
    /// By field name; empty where nothing is compared.
    pub changes: BTreeMap<String, OperationFieldDiff>,
}

/// A field before and after: a string, number, boolean or list of strings.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationFieldDiff {
    #[schema(value_type = serde_json::Value)]
    pub from: Value,
    #[schema(value_type = serde_json::Value)]
    pub to: Value,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct OperationList {
    pub items: Vec<Operation>,
    pub pagination: Pagination,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Pagination {
    pub next_cursor: Option<String>,
    pub previous_cursor: Option<String>,
    /// How many match: exact up to 1,000, an estimate above.
    pub total_count: i64,
}

impl Pagination {
    pub(super) fn of<T>(listed: &Listed<T>) -> Self {
        Self {
            next_cursor: listed.next.clone(),
            previous_cursor: listed.previous.clone(),
            total_count: listed.page.total.number,
        }
    }
}

/// List operations
#[utoipa::path(get, path = "/v1/operations", tag = "Operations", security(("bearer" = [])), params(
    ("project_id" = Option<String>, Query, description = "Project whose operations to list; all of the workspace without it"),
    ("cursor" = Option<String>, Query, description = "Cursor of a previous answer, for the same filters and order"),
    ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "Operations per page, 20 by default"),
    ("kind" = Option<String>, Query, description = "`vm`, `volume`, `vpc`, `firewall_rule`, `nks_cluster`, `nks_node_pool`, `nks_node`, `nks_load_balancer` or `connect_connection`"),
    ("type" = Option<String>, Query, description = "`create`, `update`, `delete` or `restart`"),
    ("status" = Option<String>, Query, description = "`pending`, `running`, `done`, `failed` or `unknown`"),
    ("resource_id" = Option<String>, Query, description = "Only operations on this resource"),
    ("created_at_min" = Option<String>, Query, description = "Started at or after, RFC 3339"),
    ("created_at_max" = Option<String>, Query, description = "Started at or before, RFC 3339"),
    ("sort" = Option<String>, Query, description = "`created_at` or `updated_at`, each with `:asc` or `:desc`, joined by commas; `created_at:desc` by default"),
), responses(
    (status = 200, body = OperationList),
    (status = 400, description = "The cursor is not valid for these filters and this order"),
    (status = 401, description = "No valid API key"),
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn list(State(app): State<App>, caller: Caller, params: Params) -> Result<Json<OperationList>, Failure> {
    let filter = filter(&caller, &params)?;
    let limit = params.integer("limit", 1, 100)?.unwrap_or(20);
    let sort = params.sort(&[("created_at", "created_at"), ("updated_at", "updated_at")])?;
    let listed = app.control.operations("nirvana", &filter, &sort, params.text("cursor"), limit).await?;
    let items = listed.page.items.iter().map(view).collect::<Result<_, _>>()?;
    Ok(Json(OperationList { items, pagination: Pagination::of(&listed) }))
}

/// Kinds that clients may filter by and no operation has.
const KINDS_WITHOUT_OPERATIONS: [&str; 3] = ["connect_connection", "nks_load_balancer", "nks_node"];

fn filter(caller: &Caller, params: &Params) -> Result<Filter, Error> {
    // `unknown` is what a stuck operation is called here, `failed` covers a cancelled one.
    let statuses = |word: &str| {
        let found: Vec<_> = Status::ALL.into_iter().filter(|s| s.nirvana() == word).collect();
        (!found.is_empty()).then_some(found)
    };
    let kind = params.word("kind", |word| match Kind::parse(word) {
        Some(kind) => Some(Some(kind)),
        None => KINDS_WITHOUT_OPERATIONS.contains(&word).then_some(None),
    })?;
    Ok(Filter {
        scope: caller.who.scope(),
        project_uuid: params.uuid("project_id")?,
        nothing: kind == Some(None),
        kind: kind.flatten(),
        verb: params.word("type", Verb::parse)?,
        statuses: params.word("status", statuses)?.unwrap_or_default(),
        resource_uuid: params.uuid("resource_id")?,
        created_min: params.time("created_at_min")?,
        created_max: params.time("created_at_max")?,
        ..Filter::default()
    })
}

/// Get operation details
#[utoipa::path(get, path = "/v1/operations/{operation_id}", tag = "Operations", security(("bearer" = [])), params(
    ("operation_id" = String, Path),
), responses(
    (status = 200, body = Operation),
    (status = 401, description = "No valid API key"),
    (status = 404, description = "There is no such operation in the workspace"),
))]
pub async fn get(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<Json<Operation>, Failure> {
    let found = app.control.store.operation(Some(&caller.who.scope()), &id.to_ascii_lowercase()).await?;
    let operation = found.ok_or_else(|| Error::new(Code::OperationNotFound, "There is no such operation."))?;
    Ok(Json(view(&operation)?))
}

pub(super) fn view(operation: &history::Operation) -> Result<Operation, Error> {
    // These clients know a change only with both of its sides.
    let both = |(field, diff): (String, holdfast_model::operation::FieldDiff)| {
        Some((field, OperationFieldDiff { from: diff.from?, to: diff.to? }))
    };
    Ok(Operation {
        id: operation.uuid.clone(),
        created_at: Timestamp(operation.created_at),
        details: OperationDetails { changes: operation.diff()?.into_iter().filter_map(both).collect() },
        kind: operation.kind()?.as_str(),
        project_id: operation.project_uuid.clone(),
        resource_id: operation.resource_uuid.clone(),
        status: operation.status()?.nirvana(),
        r#type: operation.verb()?.as_str(),
        updated_at: Timestamp(operation.updated_at),
    })
}
