//! `GET /cvms/{cvm_id}/state`: how a CVM is doing, in few words.
//!
//! The one rule: what is unknown is left out. The clients' schema has no nulls here.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::watch::Watch;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;
use crate::phala::version::{Asked, Version};
use crate::phala::view;

/// How a CVM is doing.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmState {
    /// The VM's UUID. Left out at 2026-01-21, where one client takes nothing but text here and another one nothing but
    /// an integer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub instance_id: String,
    pub name: String,
    pub status: String,
    /// `1h 2m 3s`, or `never` while it does not run.
    pub uptime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_progress: Option<String>,
    /// The step that failed, and why; or why the machine stands still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_progress: Option<String>,
}

impl CvmState {
    pub fn of(cvm: &view::Cvm) -> Self {
        Self {
            id: Some(cvm.vm.uuid.clone()),
            instance_id: cvm.vm.instance_id.clone(),
            name: cvm.vm.name.clone(),
            status: cvm.status.to_owned(),
            uptime: cvm.uptime(),
            exited_at: cvm.exited_at(),
            boot_progress: cvm.boot_progress(),
            boot_error: cvm.boot_error(),
            shutdown_progress: cvm.shutdown_progress(),
        }
    }
}

/// State of a CVM
///
/// With `target` the answer is a stream of server-sent events: `state` at every look, then `complete` once the CVM is
/// as wanted and no operation holds it, or `timeout`, or `error`.
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/state", tag = "CVMs", operation_id = "cvms_state",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name"),
        ("target" = Option<String>, Query, description = "Status to wait for"),
        ("interval" = Option<i64>, Query, minimum = 5, maximum = 30, description = "Seconds between looks; 5 unless told"),
        ("timeout" = Option<i64>, Query, minimum = 10, maximum = 600, description = "Seconds; 300 unless told")),
    responses((status = 200, body = CvmState), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 422, description = "Validation error")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    if let Some(watch) = Watch::read(&params)? {
        return Ok(watch.stream(app, vm.id));
    }
    let cvm = view::load_one(&app.control, vm).await?;
    let mut state = CvmState::of(&cvm);
    if asked.of(&caller.who) == Version::V20260121 {
        state.id = None;
    }
    Ok(Json(state).into_response())
}
