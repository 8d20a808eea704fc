//! One app, and its CVMs.

use axum::extract::{Path, State};
use holdfast_model::error::Error;
use holdfast_store::vms;

use super::{CVMS_OF_APP, DstackApp, with_cvms};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;
use crate::phala::cvms::list::{self, Cvms};
use crate::phala::version::Asked;

/// Get an app
#[utoipa::path(get, path = "/api/v1/apps/{app_id}", tag = "Apps", operation_id = "apps_get",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id")),
    responses((status = 200, body = DstackApp), (status = 401, description = "Authentication required"),
        (status = 404, description = "App not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Path(app_id): Path<String>,
) -> Result<Json<DstackApp>, Failure> {
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let mut apps = with_cvms(&app, &caller.who, asked.of(&caller.who), vec![row]).await?;
    apps.pop().map(Json).ok_or_else(|| Failure(Error::internal("an app vanished while it was loaded")))
}

/// List app CVMs
#[utoipa::path(get, path = "/api/v1/apps/{app_id}/cvms", tag = "Apps", operation_id = "apps_cvms",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id")),
    responses((status = 200, body = Cvms), (status = 401, description = "Not authenticated"),
        (status = 404, description = "App not found")))]
pub async fn cvms(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Path(app_id): Path<String>,
) -> Result<Json<Cvms>, Failure> {
    let rows = [app.control.app_find(&caller.who, &app_id).await?.id];
    let filter = vms::Filter { scope: Some(caller.who.scope()), app_rows: Some(&rows), ..vms::Filter::default() };
    let vms = app.control.store.vms(&filter, CVMS_OF_APP, 0).await?;
    Ok(Json(list::render(&app, asked.of(&caller.who), vms).await?))
}
