//! Exports of operations, for administrators.

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::said::ForAdministrators;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, RunInstallation};

/// Export operations
///
/// Of all workspaces, oldest first, with their events and the signed checkpoints over them: gzipped lines of JSON that
/// `holdfast audit verify --export` checks.
#[utoipa::path(get, path = "/holdfast/v1/operations/export", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("since" = Option<String>, Query, description = "Accepted at or after, RFC 3339"),
    ("until" = Option<String>, Query, description = "Accepted before, RFC 3339"),
), responses(
    (status = 200, description = "A gzip file", content_type = "application/gzip"),
    ForAdministrators,
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn export(State(app): State<App>, _: Caller<RunInstallation>, params: Params) -> Result<Response, Failure> {
    let pieces = app.control.export(params.time("since")?, params.time("until")?).await?;
    let body = futures_util::stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        // The message of a fault stays here; the reader sees that the file has no end.
        Some((piece.map_err(|_| std::io::Error::other("the export ended early")), pieces))
    });
    Ok(([(header::CONTENT_TYPE, "application/gzip")], Body::from_stream(body)).into_response())
}
