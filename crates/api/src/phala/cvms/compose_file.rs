//! What a CVM was given to run: app-compose.json and the compose file in it.
//!
//! The one rule: `?raw` gives the exact bytes that the guest got, so that their sha256 is the compose hash.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::phala::view;

/// app-compose.json of a CVM
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/compose_file", tag = "CVMs", operation_id = "cvms_compose_file",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name"),
        ("raw" = Option<String>, Query, description = "Answer the exact bytes as text")),
    responses((status = 200, body = Object), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    if params.flag("raw") {
        return Ok(text(vm.compose));
    }
    let object = RawValue::from_string(vm.compose).map_err(holdfast_model::error::Error::internal)?;
    Ok(crate::json::Json(object).into_response())
}

/// Compose file of a CVM
///
/// Empty for an app that runs a script instead.
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/docker-compose.yml", tag = "CVMs",
    operation_id = "cvms_docker_compose",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, content_type = "text/plain", body = String),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found")))]
pub async fn docker_compose(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(text(cvm.docker_compose_file().unwrap_or_default()))
}

/// Plain text: the clients take every other type of text for a binary.
pub(super) fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}
