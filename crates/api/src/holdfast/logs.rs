//! Log streams behind the signed URLs that CVM details and compositions carry. Readers send no key: the URL is one.
//!
//! Options are those of the Phala CLI. A console is plain text. A container's log is too with `text` or `bare`; without
//! them, one JSON object a line: `{"channel":"stdout","message":"<base64>"}`. Orders to a terminal, colours among them, are
//! taken out unless `ansi` is asked for.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_control::streams::{Chunk, LogStream};
use holdfast_model::error::Error;
use holdfast_model::guest::LogOptions;
use holdfast_model::node::LogSource;

use super::ansi::Plain;
use crate::App;
use crate::error::Failure;
use crate::extract::Params;

/// Lines from the end when the reader does not say.
const DEFAULT_TAIL: u64 = 10_000;
/// How long an answer waits for the log's first bytes, so that an error can still be told by its status.
const FIRST_BYTES: Duration = Duration::from_millis(500);

/// Read a CVM's console
#[utoipa::path(get, path = "/holdfast/v1/logs/{cvm}", tag = "Logs", params(
    ("cvm" = String, Path, description = "UUID of the CVM"),
    ("token" = String, Query, description = "Comes with the URL"),
    ("ch" = Option<String>, Query, description = "serial (default), stdout or stderr of the hypervisor"),
    ("tail" = Option<String>, Query, description = "Lines from the end, or `all`; `lines` is the same"),
    ("since" = Option<String>, Query), ("until" = Option<String>, Query),
    ("follow" = Option<bool>, Query), ("text" = Option<bool>, Query), ("bare" = Option<bool>, Query),
    ("timestamps" = Option<bool>, Query), ("ansi" = Option<bool>, Query, description = "Keep colour codes"),
), responses(
    (status = 200, description = "The log", content_type = "text/plain"),
    (status = 401, description = "The URL has expired"),
    (status = 422, description = "A parameter is not valid"),
    (status = 503, description = "The node or the guest does not answer"),
))]
pub async fn serial(State(app): State<App>, Path(cvm): Path<String>, params: Params) -> Result<Response, Failure> {
    let source = match params.text("ch").unwrap_or("serial") {
        "serial" => LogSource::Serial,
        "stdout" => LogSource::Stdout,
        "stderr" => LogSource::Stderr,
        _ => return Err(Error::field("query", "ch", "enum", "must be serial, stdout or stderr").into()),
    };
    read(&app, &cvm, source, &params).await
}

/// Read a container's log
#[utoipa::path(get, path = "/holdfast/v1/logs/{cvm}/{container}", tag = "Logs", params(
    ("cvm" = String, Path, description = "UUID of the CVM"),
    ("container" = String, Path, description = "Id or name of the container"),
    ("token" = String, Query, description = "Comes with the URL"),
    ("tail" = Option<String>, Query), ("since" = Option<String>, Query), ("until" = Option<String>, Query),
    ("follow" = Option<bool>, Query), ("text" = Option<bool>, Query), ("bare" = Option<bool>, Query),
    ("timestamps" = Option<bool>, Query), ("ansi" = Option<bool>, Query),
), responses(
    (status = 200, description = "The log", content_type = "text/plain"),
    (status = 401, description = "The URL has expired"),
    (status = 404, description = "There is no such container"),
    (status = 422, description = "A parameter is not valid"),
    (status = 503, description = "The node or the guest does not answer"),
))]
pub async fn container(
    State(app): State<App>,
    Path((cvm, container)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Failure> {
    read(&app, &cvm, LogSource::Container(container), &params).await
}

async fn read(app: &App, cvm: &str, source: LogSource, params: &Params) -> Result<Response, Failure> {
    let vm = app.control.log_open(cvm, params.text("token").unwrap_or_default()).await?;
    let options = LogOptions {
        since: moment(params, "since")?,
        until: moment(params, "until")?,
        tail: tail(params)?,
        follow: params.flag("follow"),
        timestamps: params.flag("timestamps"),
    };
    let console = !matches!(source, LogSource::Container(_));
    let uuid = vm.uuid.parse().map_err(Error::internal)?;
    let mut stream = app.control.streams.logs(vm.node_id, uuid, source, options).await?;
    let first = match tokio::time::timeout(FIRST_BYTES, stream.next()).await {
        Ok(Some(Ok(chunk))) => Some(chunk),
        Ok(Some(Err(error))) => return Err(error.into()),
        Ok(None) => return Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "").into_response()),
        Err(_) => None,
    };
    let text = console || params.flag("text") || params.flag("bare");
    let content_type = if text { "text/plain; charset=utf-8" } else { "application/x-ndjson" };
    let format = if text { Format::Text } else { Format::Json };
    let plain = (!params.flag("ansi")).then(Default::default);
    let pieces = Pieces { stream, first, format, plain, ended: false };
    let body = futures_util::stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), pieces))
    });
    Ok(([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response())
}

/// Lines from the end; `None` for all of them, which docker's word for is `all`.
fn tail(params: &Params) -> Result<Option<u64>, Error> {
    for name in ["tail", "lines"] {
        if params.text(name) == Some("all") {
            return Ok(None);
        }
        if let Some(lines) = params.integer(name, 0, i64::MAX)? {
            return Ok(Some(lines.unsigned_abs()));
        }
    }
    Ok(Some(DEFAULT_TAIL))
}

/// What docker takes for a point in time: RFC 3339, unix seconds, or a duration like `10m`.
fn moment(params: &Params, name: &str) -> Result<Option<String>, Error> {
    let Some(text) = params.text(name) else { return Ok(None) };
    // It is the guest's or the node's clock that counts from; here only the spelling is looked at.
    if holdfast_model::time::moment(text, holdfast_model::Timestamp(i64::MAX)).is_some() {
        return Ok(Some(text.to_owned()));
    }
    Err(Error::field("query", name, "value_error", "must be a date and time, unix seconds, or a duration like 10m"))
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
}

struct Pieces {
    stream: LogStream,
    first: Option<Chunk>,
    format: Format,
    /// For stdout and stderr; absent when orders to a terminal stay.
    plain: Option<[Plain; 2]>,
    ended: bool,
}

impl Pieces {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let mut chunk = self.chunk().await?;
            if let Some(plain) = &mut self.plain {
                chunk.data = plain[usize::from(chunk.channel == 2)].strip(&chunk.data).into();
            }
            if !chunk.data.is_empty() {
                return Some(match self.format {
                    Format::Text => chunk.data,
                    Format::Json => Bytes::from(json_line(&chunk)),
                });
            }
        }
    }

    async fn chunk(&mut self) -> Option<Chunk> {
        if self.ended {
            return None;
        }
        Some(match self.first.take() {
            Some(chunk) => chunk,
            None => match self.stream.next().await? {
                Ok(chunk) => chunk,
                Err(error) => {
                    // Too late for a status; the reader sees at least that it is not the whole log.
                    self.ended = true;
                    let text = format!("[{} {}]\n", error.code.id(), error.message);
                    Chunk { channel: 2, data: Bytes::from(text) }
                }
            },
        })
    }
}

/// Always base64: clients decode whatever looks like it, so plain text would now and then be mangled.
fn json_line(chunk: &Chunk) -> String {
    let channel = if chunk.channel == 2 { "stderr" } else { "stdout" };
    format!("{{\"channel\":\"{channel}\",\"message\":\"{}\"}}\n", STANDARD.encode(&chunk.data))
}
