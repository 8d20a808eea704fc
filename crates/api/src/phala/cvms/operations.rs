//! `GET /cvms/{cvm_id}/operations`: everything that was done to one CVM, newest first (seed page 000).
//!
//! The one rule: operations outlive their CVM. A deleted one is found by its UUID or hashid for ever, a name only names
//! what lives.

use std::collections::HashMap;

use axum::extract::{Path, State};
use holdfast_engine::ops;
use holdfast_model::Timestamp;
use holdfast_model::access::Action;
use holdfast_model::error::Error;
use holdfast_model::operation::Kind;
use holdfast_store::history::{Event, Filter, Operation};
use holdfast_store::page::Sort;
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;

/// Names this list to its cursors.
const AUDIENCE: &str = "phala/cvm-operations";

/// Types that clients may filter by although no plan of this build makes them: they match nothing yet.
const PLANNED: [&str; 9] = [
    "replicate",
    "shutdown",
    "resize",
    "compose_update",
    "env_update",
    "os_image_update",
    "ports_update",
    "rename",
    "visibility_update",
];

/// A page of operations.
#[derive(Debug, Serialize, ToSchema)]
pub struct PaginatedCvmOperationsResponse {
    /// Operations ordered by `started_at`, newest first.
    pub items: Vec<CvmOperationResponse>,
    /// Cursor of the next page, null on the last one.
    pub next_cursor: Option<String>,
    /// How many match: exact up to 1,000, an estimate above.
    pub total: i64,
}

/// One operation with its events.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmOperationResponse {
    /// Id that all events of the operation share.
    pub correlation_id: String,
    /// `create`, `power_on`, `power_off`, `restart`, `delete`, ...
    pub operation_type: String,
    /// CVM status that completion leads to.
    pub target_state: String,
    /// Id of the user who asked for it.
    pub triggered_by: i64,
    pub triggered_by_username: Option<String>,
    pub triggered_by_email: Option<String>,
    /// Time of the first event.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// Time of the last event, once it is over.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
    /// From first event to last.
    pub duration_ms: Option<i64>,
    /// `completed`, `in_progress` or `failed`.
    pub status: String,
    /// Why it failed; administrators also see the internal cause.
    pub error_message: Option<String>,
    /// Names of the steps, in the order they ran.
    pub sub_operations: Vec<String>,
    /// Oldest first.
    pub events: Vec<OperationEventDetail>,
    /// The CVM's name at the time.
    pub instance_name: String,
    /// sha256 of app-compose.json at the time.
    pub compose_hash: Option<String>,
}

/// One moment of an operation.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationEventDetail {
    /// For example `instance.power_on.start`.
    pub event_type: String,
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// The CVM's status at that moment.
    pub state: String,
}

/// List CVM operations
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/operations", tag = "CVMs", operation_id = "cvms_operations",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name"),
        ("cursor" = Option<String>, Query, description = "Opaque cursor from the previous answer"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 500, description = "50 unless told"),
        ("start_time" = Option<String>, Query, format = DateTime, description = "Started at or after this time"),
        ("end_time" = Option<String>, Query, format = DateTime, description = "Started at or before this time"),
        ("operation_types" = Option<Vec<String>>, Query, description = "Any of these types")),
    responses((status = 200, body = PaginatedCvmOperationsResponse),
        (status = 400, description = "The cursor is not one of this list"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<PaginatedCvmOperationsResponse>, Failure> {
    let limit = params.integer("limit", 1, 500)?.unwrap_or(50);
    let vm = app.control.vm_find_any(&caller.who, &id).await?;
    let filter = Filter {
        scope: caller.who.scope(),
        kind: Some(Kind::Vm),
        resource_id: Some(vm.id),
        operation_types: operation_types(&params)?,
        created_min: params.time("start_time")?,
        created_max: params.time("end_time")?,
        ..Filter::default()
    };
    let sort = Sort::newest_first("created_at");
    let listed = app.control.operations(AUDIENCE, &filter, &sort, params.text("cursor"), limit).await?;
    let ids: Vec<i64> = listed.page.items.iter().map(|operation| operation.id).collect();
    let mut events = app.control.store.events(&ids).await?;
    let admin = caller.who.may(Action::RunInstallation);
    let total = listed.page.total.number;
    let items = listed.page.items.into_iter().map(|operation| item(operation, &mut events, admin));
    Ok(Json(PaginatedCvmOperationsResponse {
        items: items.collect::<Result<_, _>>()?,
        next_cursor: listed.next,
        total,
    }))
}

fn operation_types(params: &Params) -> Result<Vec<String>, Error> {
    let types = params.list("operation_types");
    let known = |word: &str| PLANNED.contains(&word) || ops::ALL.iter().any(|plan| plan.name == word);
    match types.iter().position(|word| !known(word)) {
        None => Ok(types),
        Some(at) => Err(Error::field("query", &format!("operation_types.{at}"), "enum", "is no type of operation")),
    }
}

fn item(
    operation: Operation,
    events: &mut HashMap<i64, Vec<Event>>,
    admin: bool,
) -> Result<CvmOperationResponse, Error> {
    let events = events.remove(&operation.id).unwrap_or_default();
    let (started, completed) = (Timestamp(operation.created_at), operation.completed_at.map(Timestamp));
    let error_message = match (&operation.error_message, &operation.error_internal) {
        (Some(message), Some(internal)) if admin => Some(format!("{message} ({internal})")),
        (message, _) => message.clone(),
    };
    Ok(CvmOperationResponse {
        status: operation.status()?.phala().to_owned(),
        sub_operations: operation.sub_operations()?,
        correlation_id: operation.uuid,
        operation_type: operation.operation_type,
        target_state: operation.target_state,
        triggered_by: operation.user_id,
        triggered_by_username: Some(operation.username),
        triggered_by_email: Some(operation.email),
        started_at: started,
        completed_at: completed,
        duration_ms: completed.map(|at| i64::try_from(at.since(started).as_millis()).unwrap_or(i64::MAX)),
        error_message,
        events: events
            .into_iter()
            .map(|event| OperationEventDetail {
                event_type: event.event_type,
                timestamp: Timestamp(event.at),
                state: event.state,
            })
            .collect(),
        instance_name: operation.resource_name,
        compose_hash: operation.compose_hash,
    })
}
