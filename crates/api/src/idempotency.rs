//! `Idempotency-Key` on mutations: the same key with the same request gets the first answer again.
//!
//! The one rule: the key is taken by the transaction that does the work (`holdfast_store::idempotency`), so a crash
//! anywhere leaves either both or neither. This layer compares requests, replays answers and keeps new ones.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_control::Principal;
use holdfast_model::compose::sha256_hex;
use holdfast_model::error::{Code, Error};
use holdfast_store::idempotency::Key;

use crate::credential::Credential;
use crate::dry_run;
use crate::error::Failure;
use crate::extract::{PROJECT_HEADER, header as text_of};
use crate::{App, BODY_LIMIT};

/// Answers up to this size are kept; all of ours are far smaller.
const LARGEST_ANSWER: usize = 1024 * 1024;
const REPLAYED: &str = "idempotency-replayed";
/// Brings a password and no credential, so nobody's keys are known before its handler, which takes the key itself.
const LOGIN: &str = "/api/v1/auth/token";

pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Result<Response, Failure> {
    let mutates = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    // A dry run takes no key, and is not answered with what really happened under one.
    if !mutates || !request.headers().contains_key("idempotency-key") || dry_run::is_asked(request.uri()) {
        return Ok(next.run(request).await);
    }
    let key = text_of(request.headers(), "idempotency-key").unwrap_or_default().to_owned();
    if !(1..=255).contains(&key.len()) || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::new(Code::IdempotencyInvalid, "The idempotency key is not valid.").into());
    }
    if request.uri().path() == LOGIN {
        return Ok(next.run(request).await);
    }
    // Without a valid API key the handler says so itself.
    let credential = Credential::of(request.method(), request.headers(), request.extensions());
    let Some(credential) = credential else { return Ok(next.run(request).await) };
    let Ok(who) = credential.holder(&app).await else { return Ok(next.run(request).await) };

    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|_| Error::new(Code::BodyTooLarge, format!("The body is larger than {BODY_LIMIT} bytes.")))?;
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let mut hashed = format!("{}\0{path}\0", parts.method).into_bytes();
    hashed.extend_from_slice(&body);
    if let Some(project) = parts.headers.get(PROJECT_HEADER) {
        hashed.push(0);
        hashed.extend_from_slice(project.as_bytes());
    }
    let key = Key { key: seen_as(&who, key), request_hash: sha256_hex(hashed) };
    if let Some(answer) = replay(&app, &who, &key).await? {
        return Ok(answer);
    }
    let mut request = Request::from_parts(parts, Body::from(body));
    request.extensions_mut().insert(key.clone());
    let response = next.run(request).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    keep(&app, &who, &key, response).await
}

/// Callers that see different things of a workspace have keys of their own: nobody is answered with what another one did.
fn seen_as(who: &Principal, key: String) -> String {
    match &who.limits.projects {
        Some(projects) => format!("{key}\nprojects {projects:?}"),
        None => key,
    }
}

async fn replay(app: &App, who: &Principal, key: &Key) -> Result<Option<Response>, Error> {
    let Some(known) = app.control.store.idempotency(who.workspace_id, &key.key, app.control.now()).await? else {
        return Ok(None);
    };
    known.check(key)?;
    let status = u16::try_from(known.status_code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    // Accepted, but the server ended before it kept the answer: the handler answers from what is there.
    let Some(status) = status else { return Ok(None) };
    let mut response = if known.response.is_empty() {
        status.into_response()
    } else {
        (status, [(header::CONTENT_TYPE, "application/json")], known.response).into_response()
    };
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(Some(response))
}

async fn keep(app: &App, who: &Principal, key: &Key, response: Response) -> Result<Response, Failure> {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, LARGEST_ANSWER).await.map_err(Error::internal)?;
    let text = String::from_utf8_lossy(&body);
    // The work is done and its key taken; an answer that cannot be kept must not turn that into an error.
    if let Err(error) = app.control.store.idempotency_answer(who.workspace_id, key, parts.status.as_u16(), &text).await
    {
        tracing::warn!(%error, "the answer of an idempotency key was not kept");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}
