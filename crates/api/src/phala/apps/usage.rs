//! `GET /apps/{app_id}/usage`: what an app's CVMs used, by CVM and day.
//!
//! The one rule: amounts are in `details`, and nothing has a price. A cost that is always 0 is what this server charges.

use axum::extract::{Path, State};
use holdfast_control::usage::{Kind, Metered};
use holdfast_model::Timestamp;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;

#[derive(Debug, Serialize, ToSchema)]
pub struct AppUsageResponse {
    pub usage: Vec<MeteredUsageResponse>,
    /// Entries in all.
    pub total: i64,
    /// Always 0: this server has no prices.
    pub total_cost: f64,
}

/// What one CVM used on one day (UTC), or on the part of it that was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct MeteredUsageResponse {
    /// 40 hex digits.
    pub instance_id: String,
    pub project_id: i64,
    pub team_id: i64,
    /// When it was metered last: `billing_end`.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// Always `instance.usage`.
    pub event_type: String,
    /// Always 0: this server has no prices.
    pub cost: f64,
    /// JSON: `vcpu_hours` and `memory_gb_hours` of `compute`, `disk_gb_hours` of `disk`.
    pub details: Option<String>,
    /// `compute`, while the app is up; `disk`, as long as the CVM is there.
    pub usage_type: String,
    #[schema(value_type = String, format = DateTime)]
    pub billing_start: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub billing_end: Timestamp,
    /// How long the app was up, or the CVM there.
    pub duration_minutes: f64,
    /// The same entry always has the same.
    pub billing_key: String,
    /// The hour that `billing_start` is in.
    pub billing_hour: String,
    /// For example `2026-01-31`.
    pub billing_day: String,
}

/// Get app usage
#[utoipa::path(get, path = "/api/v1/apps/{app_id}/usage", tag = "Apps", operation_id = "apps_usage",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id"),
        ("start_date" = Option<String>, Query, format = DateTime, description = "30 days before the end unless told"),
        ("end_date" = Option<String>, Query, format = DateTime, description = "Now unless told"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 5000, description = "500 unless told"),
        ("offset" = Option<i64>, Query, minimum = 0)),
    responses((status = 200, body = AppUsageResponse),
        (status = 400, description = "More than 366 days, or an end before the beginning"),
        (status = 401, description = "Authentication required"), (status = 404, description = "App not found"),
        (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(app_id): Path<String>,
    params: Params,
) -> Result<Json<AppUsageResponse>, Failure> {
    let limit = params.integer("limit", 1, 5000)?.unwrap_or(500);
    let offset = params.integer("offset", 0, i64::from(i32::MAX))?.unwrap_or(0);
    let dates = (params.time("start_date")?, params.time("end_date")?);
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let usage = app.control.app_usage(&row, dates, limit, offset).await?;
    let shown = |metered| shown(metered, row.id, caller.who.workspace_id);
    Ok(Json(AppUsageResponse {
        usage: usage.items.into_iter().map(shown).collect(),
        total: usage.total,
        total_cost: 0.0,
    }))
}

fn shown(metered: Metered, project_id: i64, team_id: i64) -> MeteredUsageResponse {
    let used = metered.used;
    let (usage_type, time, details) = match metered.kind {
        Kind::Compute => {
            let amounts = json!({ "vcpu_hours": used.vcpu_hours(), "memory_gb_hours": used.memory_gb_hours() });
            ("compute", used.running, amounts)
        }
        Kind::Disk => ("disk", used.existing, json!({ "disk_gb_hours": used.disk_gb_hours() })),
    };
    let day = date(metered.day, 10);
    MeteredUsageResponse {
        instance_id: metered.instance_id,
        project_id,
        team_id,
        timestamp: metered.to,
        event_type: "instance.usage".to_owned(),
        cost: 0.0,
        details: Some(details.to_string()),
        usage_type: usage_type.to_owned(),
        billing_start: metered.from,
        billing_end: metered.to,
        duration_minutes: time as f64 / 60_000_000.0,
        billing_key: format!("{}:{day}:{usage_type}", metered.vm_uuid),
        billing_hour: date(metered.from, 13),
        billing_day: day,
    }
}

/// The beginning of a time as text: 10 characters are its day, 13 its hour.
fn date(time: Timestamp, length: usize) -> String {
    time.to_string().chars().take(length).collect()
}
