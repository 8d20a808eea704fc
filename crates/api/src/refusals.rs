//! Mutations that were refused, in the audit log.
//!
//! The one rule: an accepted mutation is written down by the transaction that accepts it, before any effect; a refused one
//! has none, so it is written here, after its answer is known and without its body. A caller without a valid key is
//! nobody, and is in the log of requests only; a rehearsal (`dry_run`) is no mutation, so its refusal is none either.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

use crate::App;
use crate::credential::Credential;
use crate::extract::Info;

pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let mutates = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    let credential = Credential::of(request.method(), request.headers(), request.extensions());
    let Some(credential) = credential.filter(|_| mutates) else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    let info = Info::from_request_parts(&mut parts, &app).await;
    let response = next.run(Request::from_parts(parts, body)).await;
    let status = response.status();
    // There is none for a rehearsal.
    if let Ok(Info(info)) = info
        && (status.is_client_error() || status.is_server_error())
        && let Ok(who) = credential.holder(&app).await
        && let Err(error) = app.control.audit_refusal(&who, &info, status.as_u16()).await
    {
        tracing::warn!(request = info.request_id, %error, "a refused request is not in the audit log");
    }
    response
}
