//! Errors on their way out: each surface's clients parse a shape of their own.
//!
//! The one rule: nobody writes an error body but [`render`]. A handler returns [`Failure`]; whatever answers outside of a
//! handler (an unknown path, a body that is too large, a panic) is brought into the same shapes here. A 5xx is always
//! logged with its cause, and the cause is never in the answer.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_model::error::{Code, Error};
use serde_json::json;

use crate::extract::RequestId;
use crate::json::Json;

/// An error that a handler or extractor returns.
#[derive(Debug)]
pub struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// Whose clients will read the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Phala,
    Nirvana,
    Holdfast,
}

/// Marks an answer that is finished, so that no layer puts an error body in its place.
#[derive(Clone)]
pub struct Rendered;

/// The layer of one surface.
pub async fn render(State(shape): State<Shape>, request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_default();
    finish(next.run(request).await, shape, &id)
}

/// The outermost layer: what no surface answered takes the shape of the surface that the path belongs to.
pub async fn render_by_path(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let shape = if path.starts_with("/api/") {
        Shape::Phala
    } else if path.starts_with("/v1/") {
        Shape::Nirvana
    } else {
        Shape::Holdfast
    };
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_default();
    finish(next.run(request).await, shape, &id)
}

fn finish(mut response: Response, shape: Shape, id: &RequestId) -> Response {
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    if !failed || response.extensions().get::<Rendered>().is_some() {
        return response;
    }
    let error = response.extensions_mut().remove::<Error>().unwrap_or_else(|| of_status(status));
    if status.is_server_error() {
        tracing::error!(request = id.0, code = error.code.id(), %error, "request failed");
    }
    let body = match shape {
        Shape::Phala => phala_body(&error),
        Shape::Nirvana => nirvana_body(&error),
        Shape::Holdfast => holdfast_body(&error, id),
    };
    let mut out = (status, Json(body)).into_response();
    // An Allow header and the like are worth keeping; the old body's own headers are not.
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            out.headers_mut().insert(name.clone(), value.clone());
        }
    }
    if shape == Shape::Nirvana && status == StatusCode::CONFLICT {
        // Its clients retry every 409; only what passes by itself is worth it.
        let retry = if matches!(error.code, Code::Busy | Code::QueueFull) { "true" } else { "false" };
        out.headers_mut().insert("x-should-retry", HeaderValue::from_static(retry));
    }
    if matches!(error.code, Code::Unauthenticated | Code::LoginFailed) {
        out.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if error.code == Code::Unavailable {
        out.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    }
    out.extensions_mut().insert(Rendered);
    out
}

/// What the web framework answered by itself.
fn of_status(status: StatusCode) -> Error {
    let (code, message) = match status {
        StatusCode::NOT_FOUND => (Code::RouteNotFound, "There is nothing at this path.".to_owned()),
        StatusCode::METHOD_NOT_ALLOWED => (Code::MethodNotAllowed, "This path has no such method.".to_owned()),
        StatusCode::PAYLOAD_TOO_LARGE => {
            (Code::BodyTooLarge, format!("The body is larger than {} bytes.", crate::BODY_LIMIT))
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (Code::UnsupportedBody, "The body has another content type.".to_owned()),
        StatusCode::REQUEST_TIMEOUT => (Code::RequestTimeout, "The request took too long to arrive.".to_owned()),
        s if s.is_client_error() => (Code::InvalidRequest, "The request cannot be understood.".to_owned()),
        _ => return Error::internal(format!("bare status {status}")),
    };
    Error::new(code, message)
}

/// Shapes that the Phala clients parse (contract, section 1.4). Without a key they want a plain `detail`, for wrong
/// fields a list of them, and otherwise the structured form at the top level.
fn phala_body(error: &Error) -> serde_json::Value {
    if error.code.http() == 422 && !error.details.is_empty() {
        let detail: Vec<_> =
            error.details.iter().map(|d| json!({ "loc": d.loc, "msg": d.message, "type": d.kind })).collect();
        return json!({ "detail": detail });
    }
    if matches!(error.code, Code::Unauthenticated | Code::LoginFailed | Code::RouteNotFound | Code::MethodNotAllowed) {
        return json!({ "detail": error.message });
    }
    let details: Vec<_> = error
        .details
        .iter()
        .map(|d| json!({ "field": d.loc.join("."), "value": null, "message": d.message }))
        .collect();
    json!({
        "error_code": error.code.phala().unwrap_or(error.code.id()),
        "message": error.message,
        "details": details,
        "suggestions": [error.code.hint()],
        "links": [],
    })
}

fn nirvana_body(error: &Error) -> serde_json::Value {
    json!({ "message": error.message, "code": error.code.id(), "hint": error.code.hint() })
}

fn holdfast_body(error: &Error, id: &RequestId) -> serde_json::Value {
    json!({
        "error": {
            "code": error.code.id(),
            "message": error.message,
            "hint": error.code.hint(),
            "details": error.details,
            "request_id": id.0,
        }
    })
}

pub async fn not_found() -> Failure {
    Failure(of_status(StatusCode::NOT_FOUND))
}

pub async fn method_not_allowed() -> Failure {
    Failure(of_status(StatusCode::METHOD_NOT_ALLOWED))
}

/// A handler panicked: a fault of ours like any other.
pub fn panicked(cause: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Failure(Error::internal(format!("panic: {text}"))).into_response()
}
