//! Operations with their steps: what `holdfast ops` and the console read.

use std::collections::HashMap;

use axum::extract::{Path, State};
use holdfast_control::{Principal, Scope};
use holdfast_engine::{Direction, ops};
use holdfast_model::Timestamp;
use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_model::operation::{Diff, Kind, Status, Verb};
use holdfast_store::history::{self, Actor as By, Event, Filter};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params};
use crate::json::Json;

/// An operation with everything the caller may know of it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = holdfast::Operation)]
pub struct Operation {
    /// The same value as Phala's `correlation_id` and Nirvana's `id`.
    pub id: String,
    /// `create`, `power_on`, `power_off`, `restart`, `delete`.
    pub operation_type: String,
    pub kind: &'static str,
    pub r#type: &'static str,
    /// `pending`, `running`, `done`, `failed`, `cancelled` or `stuck`.
    pub status: &'static str,
    pub target_state: String,
    pub resource: Resource,
    pub actor: Actor,
    pub project_id: String,
    pub compose_hash: Option<String>,
    /// What it changes, by field: `{"from": ..., "to": ...}`. A field that is new has no `from`.
    #[schema(value_type = std::collections::BTreeMap<String, serde_json::Value>)]
    pub changes: Diff,
    /// In the order they run; those to come are `pending`.
    pub steps: Vec<Step>,
    pub events: Vec<EventView>,
    pub error: Option<OperationError>,
    /// While it waits for its turn: the operation that holds what it needs.
    pub waiting_for: Option<String>,
    /// The failed operation that this one repeats.
    pub retry_of: Option<String>,
    /// Who asked for a cancel.
    pub cancelled_by: Option<String>,
    pub request_id: String,
    pub trace_id: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    pub duration_ms: Option<i64>,
    /// The requests that started it or acted on it, oldest first: entries of the audit log. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Vec<OperationRequest>>,
}

/// Who started, cancelled, retried or abandoned an operation.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationRequest {
    /// Of the audit log entry.
    pub id: String,
    /// Username of who asked.
    pub actor: String,
    /// `vm.create`, `operation.cancel` ...
    pub action: String,
    pub method: String,
    pub path: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub client_address: Option<String>,
}

/// What an operation acts on, as it is now.
#[derive(Debug, Serialize, ToSchema)]
pub struct Resource {
    pub kind: &'static str,
    pub id: String,
    /// Name at the time of the operation.
    pub name: String,
    pub status: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Actor {
    pub username: String,
    pub email: String,
    pub client_address: Option<String>,
}

/// One step of the plan, or one undo of a step (`undo_<name>`).
#[derive(Debug, Serialize, ToSchema)]
pub struct Step {
    pub name: String,
    /// `pending`, `running`, `done`, `failed` or `skipped`.
    pub state: &'static str,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
    /// For the running step: when it times out.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EventView {
    /// Number within the operation, from 1, without gaps.
    pub seq: i64,
    pub event_type: String,
    pub step: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// Status of the resource at that moment.
    pub state: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct OperationError {
    pub code: String,
    pub message: String,
    pub hint: &'static str,
    /// Only for administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = holdfast::OperationPage)]
pub struct OperationPage {
    /// Newest first.
    pub items: Vec<Operation>,
    pub next_cursor: Option<String>,
    pub previous_cursor: Option<String>,
    /// How many match: exact up to 1,000.
    pub total: i64,
    /// Above 1,000: `total` is extrapolated from how densely the newest that match lie.
    pub total_is_estimate: bool,
}

/// List operations
#[utoipa::path(get, path = "/holdfast/v1/operations", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("cursor" = Option<String>, Query, description = "Cursor of a previous answer, for the same filters and order"),
    ("limit" = Option<i64>, Query, minimum = 1, maximum = 500, description = "Operations per page, 50 by default"),
    ("workspace" = Option<String>, Query, description = "Those of this workspace in place of the caller's: slug or `wks_` id, for administrators"),
    ("project" = Option<String>, Query, description = "Only operations on what is in this project, by UUID"),
    ("kind" = Option<String>, Query, description = "Only this kind of resource"),
    ("type" = Option<String>, Query, description = "Only this type"),
    ("operation_type" = Option<Vec<String>>, Query, description = "Only these operation types"),
    ("status" = Option<Vec<String>>, Query, description = "Only these statuses"),
    ("resource" = Option<String>, Query, description = "Only operations on this resource, by UUID"),
    ("actor" = Option<String>, Query, description = "Only operations of this user: username, UUID or `usr_` id"),
    ("correlation_id" = Option<String>, Query, description = "Only the operation with this id"),
    ("name_prefix" = Option<String>, Query, description = "Only operations on resources whose name began so at the time"),
    ("created_at_min" = Option<String>, Query, description = "Accepted at or after, RFC 3339"),
    ("created_at_max" = Option<String>, Query, description = "Accepted at or before, RFC 3339"),
    ("sort" = Option<String>, Query, description = "`created_at` or `updated_at`, each with `:asc` or `:desc`, joined by commas; `created_at:desc` by default"),
), responses(
    (status = 200, body = OperationPage),
    (status = 400, description = "The cursor is not valid for these filters and this order"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Another workspace is only for administrators"),
    (status = 404, description = "There is no such workspace"),
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn list(State(app): State<App>, caller: Caller, params: Params) -> Result<Json<OperationPage>, Failure> {
    let limit = params.integer("limit", 1, 500)?.unwrap_or(50);
    let scope = match params.text("workspace") {
        Some(id) => Scope::whole(app.control.workspace_any(&caller.who, id).await?.id),
        None => caller.who.scope(),
    };
    let filter = Filter {
        scope,
        project_uuid: params.uuid("project")?,
        kind: params.word("kind", Kind::parse)?,
        verb: params.word("type", Verb::parse)?,
        operation_types: params.words("operation_type", known_type)?,
        statuses: params.words("status", Status::parse)?,
        resource_uuid: params.uuid("resource")?,
        actor: params.text("actor").map(actor),
        uuid: params.uuid("correlation_id")?,
        name_prefix: params.text("name_prefix").map(str::to_owned),
        created_min: params.time("created_at_min")?,
        created_max: params.time("created_at_max")?,
        ..Filter::default()
    };
    let sort = params.sort(&[("created_at", "created_at"), ("updated_at", "updated_at")])?;
    let listed = app.control.operations("holdfast", &filter, &sort, params.text("cursor"), limit).await?;
    let ids: Vec<i64> = listed.page.items.iter().map(|o| o.id).collect();
    let mut events = app.control.store.events(&ids).await?;
    let pending = |o: &&history::Operation| o.status().is_ok_and(|status| status == Status::Pending);
    let pending: Vec<i64> = listed.page.items.iter().filter(pending).map(|o| o.id).collect();
    let mut waiting = app.control.store.operations_waiting_for(&pending).await?;
    let admin = caller.who.may(Action::RunInstallation);
    let total = listed.page.total;
    let items = listed.page.items.into_iter().map(|o| view(o, &mut events, &mut waiting, admin));
    Ok(Json(OperationPage {
        items: items.collect::<Result<_, _>>()?,
        next_cursor: listed.next,
        previous_cursor: listed.previous,
        total: total.number,
        total_is_estimate: total.is_estimate,
    }))
}

/// A type that some plan has.
fn known_type(word: &str) -> Option<String> {
    ops::ALL.iter().any(|plan| plan.name == word).then(|| word.to_owned())
}

fn actor(word: &str) -> By {
    match (hashid::decode(Prefix::User, word), uuid::Uuid::try_parse(word)) {
        (Some(id), _) => By::Id(id),
        (None, Ok(uuid)) => By::Uuid(uuid.to_string()),
        (None, Err(_)) => By::Username(word.to_owned()),
    }
}

/// Get an operation
#[utoipa::path(get, path = "/holdfast/v1/operations/{id}", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path),
), responses(
    (status = 200, body = Operation),
    (status = 401, description = "No valid API key"),
    (status = 404, description = "There is no such operation in the workspace"),
))]
pub async fn get(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<Json<Operation>, Failure> {
    Ok(Json(read(&app, &caller.who, &id).await?))
}

/// An operation as it is now: one of the caller's workspace, or any for whoever runs the installation.
pub(super) async fn read(app: &App, who: &Principal, id: &str) -> Result<Operation, Error> {
    let operation = app.control.operation_see(who, id).await?;
    let mut events = app.control.store.events(&[operation.id]).await?;
    let mut waiting = app.control.store.operations_waiting_for(&[operation.id]).await?;
    let requests = app.control.store.operation_requests(&operation.uuid).await?;
    let requests = requests.into_iter().map(|entry| OperationRequest {
        id: entry.uuid,
        actor: entry.actor_name,
        action: entry.action,
        method: entry.method,
        path: entry.path,
        at: Timestamp(entry.at),
        client_address: entry.client_address,
    });
    let shown = view(operation, &mut events, &mut waiting, who.may(Action::RunInstallation))?;
    Ok(Operation { requests: Some(requests.collect()), ..shown })
}

/// Every text moves from the row into the answer: a page has thousands of them.
fn view(
    operation: history::Operation,
    events: &mut HashMap<i64, Vec<Event>>,
    waiting: &mut HashMap<i64, String>,
    admin: bool,
) -> Result<Operation, Error> {
    let events = events.remove(&operation.id).unwrap_or_default();
    let (kind, ended) = (operation.kind()?.as_str(), operation.completed_at);
    let (verb, status, diff) = (operation.verb()?.as_str(), operation.status()?.as_str(), operation.diff()?);
    let steps = steps(&operation, &events)?;
    let error = operation.error_code.map(|code| OperationError {
        hint: Code::from_id(&code).map_or("", Code::hint),
        code,
        message: operation.error_message.unwrap_or_default(),
        internal: operation.error_internal.filter(|_| admin),
    });
    Ok(Operation {
        id: operation.uuid,
        operation_type: operation.operation_type,
        kind,
        r#type: verb,
        status,
        target_state: operation.target_state,
        resource: Resource {
            kind,
            id: operation.resource_uuid,
            name: operation.resource_name,
            status: operation.resource_status,
        },
        actor: Actor { username: operation.username, email: operation.email, client_address: operation.client_address },
        project_id: operation.project_uuid,
        compose_hash: operation.compose_hash,
        changes: diff,
        steps,
        events: events.into_iter().map(EventView::from).collect(),
        error,
        waiting_for: waiting.remove(&operation.id),
        retry_of: operation.retry_of,
        cancelled_by: operation.cancelled_by,
        request_id: operation.request_id,
        trace_id: operation.trace_id,
        created_at: Timestamp(operation.created_at),
        started_at: operation.started_at.map(Timestamp),
        completed_at: ended.map(Timestamp),
        updated_at: Timestamp(operation.updated_at),
        duration_ms: ended.map(|at| (at - operation.created_at) / 1000),
        requests: None,
    })
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            seq: event.seq,
            event_type: event.event_type,
            step: event.step,
            timestamp: Timestamp(event.at),
            state: event.state,
        }
    }
}

/// The steps that ran, from their events, and those that the plan still has.
fn steps(operation: &history::Operation, events: &[Event]) -> Result<Vec<Step>, Error> {
    let mut steps: Vec<Step> = Vec::new();
    for event in events {
        let Some(name) = &event.step else { continue };
        let at = Timestamp(event.at);
        if event.event_type.ends_with(".start") {
            steps.push(Step {
                name: name.clone(),
                state: "running",
                started_at: Some(at),
                completed_at: None,
                duration_ms: None,
                deadline_at: None,
            });
        } else if let Some(step) = steps.iter_mut().rev().find(|s| &s.name == name) {
            step.state = if event.event_type.ends_with(".end") { "done" } else { "failed" };
            step.completed_at = Some(at);
            step.duration_ms = step.started_at.map(|start| (at.micros() - start.micros()) / 1000);
        }
    }
    if let Some(running) = steps.last_mut().filter(|s| s.state == "running") {
        running.deadline_at = operation.deadline_at.map(Timestamp);
    }
    let version = u32::try_from(operation.plan_version).unwrap_or(0);
    let forward = operation.direction == Direction::Forward.as_str();
    if let Some(plan) = ops::find(&operation.operation_type, version) {
        let to_come = if forward && !operation.status()?.is_terminal() { "pending" } else { "skipped" };
        for step in plan.steps {
            if !steps.iter().any(|s| s.name == step.name) {
                steps.push(Step {
                    name: step.name.to_owned(),
                    state: to_come,
                    started_at: None,
                    completed_at: None,
                    duration_ms: None,
                    deadline_at: None,
                });
            }
        }
    }
    Ok(steps)
}
