//! Cancelling, retrying and abandoning operations.

use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::operations::{Operation, read};
use super::said::ForAdministrators;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Info, RunInstallation, WriteVms};
use crate::json::Json;

/// Cancel an operation
///
/// Before its pivot everything is undone and it ends as `cancelled`; after it the answer is 409.
#[utoipa::path(post, path = "/holdfast/v1/operations/{id}/cancel", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path),
), responses(
    (status = 202, body = Operation),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "The caller's role can only read"),
    (status = 404, description = "There is no such operation in the workspace"),
    (status = 409, description = "It is over, being undone, or past its pivot"),
))]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Operation>), Failure> {
    app.control.operation_cancel(&caller.who, &info, &id).await?;
    Ok((StatusCode::ACCEPTED, Json(read(&app, &caller.who, &id).await?)))
}

/// Retry a failed operation
///
/// Accepts a new operation that does the same and names the failed one in `retry_of`.
#[utoipa::path(post, path = "/holdfast/v1/operations/{id}/retry", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path),
), responses(
    (status = 202, body = Operation, description = "The new operation"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "The caller's role can only read"),
    (status = 404, description = "There is no such operation in the workspace"),
    (status = 409, description = "It has not failed, cannot be repeated, or the resource is busy"),
))]
pub async fn retry(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Operation>), Failure> {
    let new = app.control.operation_retry(&caller.who, &info, &id).await?;
    Ok((StatusCode::ACCEPTED, Json(read(&app, &caller.who, &new.uuid).await?)))
}

/// Abandon a stuck operation
///
/// It becomes `failed` and its resource free for other operations; what its node may still hold stays reserved.
#[utoipa::path(post, path = "/holdfast/v1/operations/{id}/abandon", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path),
), responses(
    (status = 200, body = Operation),
    ForAdministrators,
    (status = 404, description = "There is no such operation in the workspace"),
    (status = 409, description = "It is not stuck"),
))]
pub async fn abandon(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<Operation>, Failure> {
    app.control.operation_abandon(&caller.who, &info, &id).await?;
    Ok(Json(read(&app, &caller.who, &id).await?))
}
