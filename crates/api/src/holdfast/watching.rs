//! Following operations: long poll, the events of one, and the stream of all.
//!
//! Event streams are SSE. Each event's `id` is its position; a client that comes back with `Last-Event-ID` goes on right
//! after it, also when the server was restarted in between.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use holdfast_control::events::Watch;
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::feed::Positioned;
use holdfast_store::retention::Base;
use serde::Serialize;
use utoipa::ToSchema;

use super::operations::{Operation, read};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, header as text_of};
use crate::json::Json;

/// A connection without events says that it lives this often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamEvent {
    /// Grows by one from event to event of the installation; also the SSE id.
    pub position: i64,
    pub operation_id: String,
    pub operation_type: String,
    pub resource_id: String,
    pub resource_name: String,
    /// Number within the operation.
    pub seq: i64,
    pub event_type: String,
    pub step: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// Status of the resource at that moment.
    pub state: String,
}

/// Says that a stream does not begin where it was asked to: events up to a position left for the server's archive.
#[derive(Debug, Serialize, ToSchema)]
pub struct ArchivedEvent {
    /// The stream goes on after this position; also the SSE id.
    pub position: i64,
    /// Operations that were over before this moment left.
    #[schema(value_type = String, format = DateTime)]
    pub over_before: Timestamp,
}

/// Wait for an operation
///
/// Answers as soon as the operation has an event after `after` (by default: after the call), or is over, or the time is up.
/// While it is not over, `Retry-After` says when to ask again.
#[utoipa::path(get, path = "/holdfast/v1/operations/{id}/wait", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path),
    ("timeout" = Option<i64>, Query, minimum = 0, maximum = 300, description = "Seconds, 30 by default"),
    ("after" = Option<i64>, Query, description = "`seq` of the last event that the caller has seen"),
), responses(
    (status = 200, body = Operation),
    (status = 401, description = "No valid API key"),
    (status = 404, description = "There is no such operation in the workspace"),
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn wait(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Failure> {
    let timeout = params.integer("timeout", 0, 300)?.unwrap_or(30);
    let after = params.integer("after", 0, i64::MAX)?;
    let operation = app.control.operation_find(&caller.who, &id).await?;
    let mut watch = app.control.watch(caller.who.scope(), Some(operation.id), None).await?;
    let seen = app.control.store.events(&[operation.id]).await?.remove(&operation.id).unwrap_or_default();
    let after = after.unwrap_or_else(|| seen.last().map_or(0, |e| e.seq));
    if !operation.status()?.is_terminal() {
        let news = async {
            while watch.next().await?.seq <= after {}
            Ok::<_, Error>(())
        };
        match tokio::time::timeout(Duration::from_secs(timeout.unsigned_abs()), news).await {
            Ok(news) => news?,
            Err(_) => tracing::trace!("the time of a wait is up"),
        }
    }
    let operation = read(&app, &caller.who, &id).await?;
    let over = operation.completed_at.is_some();
    let mut response = Json(operation).into_response();
    if !over {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Ok(response)
}

/// Stream the events of an operation
///
/// From its first event, or after `Last-Event-ID`, to its last; then the stream ends.
#[utoipa::path(get, path = "/holdfast/v1/operations/{id}/events", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path),
    ("Last-Event-ID" = Option<i64>, Header, description = "Position of the last event that the caller has seen"),
), responses(
    (status = 200, body = StreamEvent, content_type = "text/event-stream"),
    (status = 401, description = "No valid API key"),
    (status = 404, description = "There is no such operation in the workspace"),
    (status = 422, description = "Last-Event-ID is not a number"),
))]
pub async fn events(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let operation = app.control.operation_find(&caller.who, &id).await?;
    let position = last_event_id(&headers)?;
    let watch = app.control.watch(caller.who.scope(), Some(operation.id), position).await?;
    // An operation that was over before holds nothing back: its last event ends the stream.
    let ended = operation.status()?.is_terminal()
        && app.control.store.events_of_after(operation.id, position.unwrap_or(0)).await?.is_empty();
    Ok(sse(watch, true, ended))
}

/// Stream the events of all operations
///
/// From now on, or after `Last-Event-ID`. Where events after that have left for the archive by age, the first event of the
/// stream is `archived` (`position`, `over_before`), and the stream goes on after that position.
#[utoipa::path(get, path = "/holdfast/v1/operations/stream", tag = "Operations", security(("key" = []), ("bearer" = [])), params(
    ("Last-Event-ID" = Option<i64>, Header, description = "Position of the last event that the caller has seen"),
), responses(
    (status = 200, body = StreamEvent, content_type = "text/event-stream"),
    (status = 401, description = "No valid API key"),
    (status = 422, description = "Last-Event-ID is not a number"),
))]
pub async fn stream(State(app): State<App>, caller: Caller, headers: HeaderMap) -> Result<Response, Failure> {
    let watch = app.control.watch(caller.who.scope(), None, last_event_id(&headers)?).await?;
    Ok(sse(watch, false, false))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, Error> {
    let Some(text) = text_of(headers, "last-event-id").filter(|text| !text.is_empty()) else { return Ok(None) };
    let position = text.parse::<i64>().ok().filter(|n| *n >= 0);
    position.map(Some).ok_or_else(|| Error::field("header", "Last-Event-ID", "int_parsing", "must be a position"))
}

/// Every watcher of an event gets the same bytes, so they are written here and not by a builder of one stream's events.
fn sse(watch: Watch, of_one: bool, ended: bool) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(pieces(watch, of_one, ended))).into_response()
}

fn pieces(watch: Watch, of_one: bool, ended: bool) -> impl Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold((watch, ended), move |(mut watch, ended)| async move {
        if ended {
            return None;
        }
        if let Some(base) = watch.left.take() {
            return Some((Ok(archived(base)), (watch, false)));
        }
        match tokio::time::timeout(KEEP_ALIVE, watch.next()).await {
            Ok(Ok(event)) => {
                let last = of_one && ends_operation(&event);
                Some((Ok(event.frame(frame)), (watch, last)))
            }
            // The client comes back with the last id it has, and goes on from there.
            Ok(Err(error)) => {
                tracing::error!(%error, "an event stream ended");
                None
            }
            Err(_) => Some((Ok(Bytes::from_static(b":\n\n")), (watch, false))),
        }
    })
}

/// `instance.create.end` and `.error` have no step: they are an operation's last word.
fn ends_operation(event: &Positioned) -> bool {
    event.step.is_none() && !event.event_type.ends_with(".start")
}

fn archived(base: Base) -> Bytes {
    sse_event(base.position, "archived", &ArchivedEvent { position: base.position, over_before: base.over_before })
}

fn frame(event: &Positioned) -> Bytes {
    let data = StreamEvent {
        position: event.position,
        operation_id: event.operation_uuid.clone(),
        operation_type: event.operation_type.clone(),
        resource_id: event.resource_uuid.clone(),
        resource_name: event.resource_name.clone(),
        seq: event.seq,
        event_type: event.event_type.clone(),
        step: event.step.clone(),
        timestamp: Timestamp(event.at),
        state: event.state.clone(),
    };
    sse_event(event.position, "operation", &data)
}

/// JSON has no line breaks outside of its strings and escapes those inside, so the data is one line.
fn sse_event(id: i64, kind: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n").into()
}
