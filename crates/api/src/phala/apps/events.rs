//! `GET /apps/{app_id}/events`: what happened to an app's CVMs, newest first.

use axum::extract::{Path, State};
use holdfast_model::Timestamp;
use holdfast_store::app_events::{AppEvent, Filter};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;

#[derive(Debug, Serialize, ToSchema)]
pub struct AppEventsResponse {
    pub events: Vec<InstanceEventResponse>,
    /// How many match, also those above the limit.
    pub total: i64,
}

/// A moment of an operation, or something that a CVM did by itself; then whatever an operation would say is null.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceEventResponse {
    /// The same event always has the same.
    pub message_id: String,
    /// The operation that it belongs to.
    pub correlation_id: Option<String>,
    /// For example `instance.power_on.start` or `instance.exited`.
    pub event_type: String,
    pub operation_type: Option<String>,
    pub target_state: Option<String>,
    /// What the operation changes, as JSON; or the words that an event by itself came with.
    pub operation_payload: Option<String>,
    /// Id of the user who asked for it.
    pub triggered_by: Option<i64>,
    /// 40 hex digits.
    pub instance_id: String,
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    pub priority: Option<String>,
    pub instance_name: Option<String>,
    /// Status of the CVM at that moment.
    pub state: Option<String>,
    pub instance_type: Option<String>,
    pub project_id: Option<i64>,
    pub team_id: Option<i64>,
    /// Id of the user who made the CVM.
    pub user_id: Option<i64>,
}

/// List app events
#[utoipa::path(get, path = "/api/v1/apps/{app_id}/events", tag = "Apps", operation_id = "apps_events",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "100 unless told"),
        ("event_type" = Option<String>, Query), ("operation_type" = Option<String>, Query),
        ("instance_id" = Option<String>, Query, description = "Instance id or UUID of one CVM"),
        ("start_date" = Option<String>, Query, format = DateTime, description = "At or after this time"),
        ("end_date" = Option<String>, Query, format = DateTime, description = "At or before this time")),
    responses((status = 200, body = AppEventsResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "App not found"), (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(app_id): Path<String>,
    params: Params,
) -> Result<Json<AppEventsResponse>, Failure> {
    let limit = params.integer("limit", 1, 1000)?.unwrap_or(100);
    let instance = params.text("instance_id").map(|text| {
        let uuid = uuid::Uuid::try_parse(text).ok().filter(|_| matches!(text.len(), 32 | 36));
        uuid.map_or_else(|| text.strip_prefix("instance_").unwrap_or(text).to_lowercase(), |u| u.to_string())
    });
    let filter = Filter {
        event_type: params.text("event_type").map(str::to_owned),
        operation_type: params.text("operation_type").map(str::to_owned),
        instance,
        from: params.time("start_date")?,
        to: params.time("end_date")?,
    };
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let (events, total) = app.control.store.app_events(row.id, &filter, limit).await?;
    let events = events.into_iter().map(|event| shown(event, row.id)).collect();
    Ok(Json(AppEventsResponse { events, total }))
}

fn shown(event: AppEvent, app_row: i64) -> InstanceEventResponse {
    let message_id = match (&event.operation_uuid, event.seq) {
        (Some(operation), Some(seq)) => format!("{operation}:{seq}"),
        _ => format!("{}:{}:{}", event.vm_uuid, event.at, event.event_type),
    };
    InstanceEventResponse {
        message_id,
        correlation_id: event.operation_uuid,
        event_type: event.event_type,
        operation_type: event.operation_type,
        target_state: event.target_state,
        operation_payload: event.payload,
        triggered_by: event.triggered_by,
        instance_id: event.instance_id,
        timestamp: Timestamp(event.at),
        priority: None,
        instance_name: Some(event.vm_name),
        state: event.state,
        instance_type: event.instance_type,
        project_id: Some(app_row),
        team_id: Some(event.workspace_id),
        user_id: Some(event.created_by),
    }
}
