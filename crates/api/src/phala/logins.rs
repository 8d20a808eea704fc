//! How somebody without a credential gets one: with a password, or as a device that somebody else lets in; and how a login
//! ends.
//!
//! The one rule: who asks too often is told when to ask again, before anything is looked up.
//!
//! A password's login takes an `Idempotency-Key`, as whatever makes a token: its repetition says 409. Those of a device do
//! not need one: a code of which the answer was lost ends by itself after a quarter of an hour, and the device's code is
//! itself good for one token only.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holdfast_control::RequestInfo;
use holdfast_control::devices::{self, Asked};
use holdfast_control::guard::Denied;
use holdfast_model::compose::sha256_hex;
use holdfast_model::error::Error;
use holdfast_store::api_keys::Kind;
use holdfast_store::idempotency::Key;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::App;
use crate::credential::{client_address, set_cookie};
use crate::error::{Failure, Rendered};
use crate::extract::{Body, Caller, Info, Own, Read, form_field, header as header_text};
use crate::json::Json;

/// The other end of the connection.
pub struct From(pub Option<std::net::IpAddr>);

impl FromRequestParts<App> for From {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Failure> {
        Ok(Self(client_address(&parts.extensions)))
    }
}

/// A refusal, with the time to wait where there is one.
pub(crate) fn denied(denied: Denied) -> Response {
    let (error, wait) = denied.parts();
    let mut response = Failure(error).into_response();
    if let Some(seconds) = wait {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn secret(body: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
}

/// A token that a login gave.
#[derive(Serialize, ToSchema)]
pub struct AccessToken {
    /// For `Authorization: Bearer` or `X-API-Key`.
    access_token: String,
    /// Always `bearer`.
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
}

impl AccessToken {
    fn answer(token: &str, lifetime: Duration) -> Response {
        let access_token = token.to_owned();
        secret(Self { access_token, token_type: "bearer", expires_in: lifetime.as_secs() })
    }
}

/// What the OAuth2 password flow sends, as a form.
#[derive(Debug, Deserialize, ToSchema)]
#[allow(dead_code)]
pub struct PasswordForm {
    /// `password`
    grant_type: Option<String>,
    /// Name or e-mail address.
    username: String,
    #[schema(format = Password)]
    password: String,
    /// Ignored: the token may what its holder may.
    scope: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

/// Exchange a password for a token
///
/// OAuth2's password flow. The token works for a day; POST /auth/logout ends it. A name that nobody has is answered as a wrong
/// password is. A repetition under the same `Idempotency-Key` is answered 409 and names the token.
#[utoipa::path(post, path = "/api/v1/auth/token", tag = "Authentication", operation_id = "auth_token", security(()),
    request_body(content = PasswordForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = AccessToken),
        (status = 401, description = "Incorrect username or password"),
        (status = 409, description = "Already created under this idempotency key"),
        (status = 422, description = "Validation error"),
        (status = 429, description = "Too many attempts; Retry-After says when to try again")))]
pub async fn token(
    State(app): State<App>,
    From(from): From,
    Info(info): Info,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let field = |name| form_field(&body, name);
    let missing = |name| Failure(Error::field("body", name, "missing", "Field required")).into_response();
    if field("grant_type").is_some_and(|kind| kind != "password") {
        return Failure(Error::field("body", "grant_type", "value_error", "must be password")).into_response();
    }
    let Some(name) = field("username") else { return missing("username") };
    let Some(password) = field("password").map(Zeroizing::new) else { return missing("password") };
    let who = match app.control.login(&name, password, from).await {
        Ok(who) => who,
        Err(why) => return denied(why),
    };
    // Keys are kept with a hash of their request; of a password not even that is kept.
    let key = header_text(&headers, "idempotency-key").map(|key| Key {
        key: key.to_owned(),
        request_hash: sha256_hex(format!("{}\0{}\0{name}", info.method, info.path)),
    });
    let info = RequestInfo { idempotency: key, ..info };
    match app.control.login_issue(&who, &info, Kind::Password, None).await {
        Ok((token, lifetime)) => AccessToken::answer(&token, lifetime),
        Err(error) => Failure(error).into_response(),
    }
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct DeviceCodeRequest {
    /// What the device calls itself; whoever lets it in sees it.
    client_id: String,
    /// Ignored: the token may what whoever lets the device in may, but for running the installation.
    #[allow(dead_code)]
    scope: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct DeviceCode {
    /// For the device alone.
    device_code: String,
    /// For people to type.
    user_code: String,
    /// Where to type it.
    verification_uri: String,
    /// The same with the code filled in.
    verification_uri_complete: String,
    /// Seconds.
    expires_in: u64,
    /// Seconds between two requests of the device.
    interval: i64,
}

/// Ask to let a device in
///
/// RFC 8628. Somebody who is signed in types the code at `verification_uri`, or the operator runs `holdfast admin approve CODE`.
#[utoipa::path(post, path = "/api/v1/auth/device/code", tag = "Authentication", operation_id = "auth_device_code", security(()),
    request_body = DeviceCodeRequest,
    responses((status = 200, body = DeviceCode), (status = 422, description = "Validation error"),
        (status = 429, description = "Too many attempts; Retry-After says when to try again")))]
pub async fn device_code(
    State(app): State<App>,
    From(from): From,
    Info(_info): Info,
    Body(request): Body<DeviceCodeRequest>,
) -> Response {
    let begun = match app.control.device_begin(&request.client_id, from).await {
        Ok(begun) => begun,
        Err(why) => return denied(why),
    };
    let page = format!("{}/device", app.control.settings.public_url);
    secret(DeviceCode {
        device_code: begun.device_code.to_string(),
        verification_uri_complete: format!("{page}?user_code={}", begun.user_code),
        user_code: begun.user_code,
        verification_uri: page,
        expires_in: begun.expires_in.as_secs(),
        interval: begun.interval,
    })
}

#[derive(Deserialize, ToSchema)]
pub struct DeviceTokenRequest {
    device_code: String,
    /// `urn:ietf:params:oauth:grant-type:device_code`
    grant_type: Option<String>,
}

/// Ask whether a device was let in
///
/// 400 with `authorization_pending` until then; `slow_down`, `expired_token`, `access_denied` and `invalid_grant` as in RFC 8628.
/// The token is given once.
#[utoipa::path(post, path = "/api/v1/auth/device/token", tag = "Authentication", operation_id = "auth_device_token", security(()),
    request_body = DeviceTokenRequest,
    responses((status = 200, body = AccessToken), (status = 400, description = "Not let in, or not yet"),
        (status = 422, description = "Validation error")))]
pub async fn device_token(
    State(app): State<App>,
    Info(info): Info,
    Body(request): Body<DeviceTokenRequest>,
) -> Response {
    const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
    if request.grant_type.as_deref().is_some_and(|grant| grant != GRANT) {
        return no_token("unsupported_grant_type", "The grant type is not that of a device.");
    }
    match app.control.device_ask(&request.device_code, &info).await {
        Ok(Asked::Token(token)) => AccessToken::answer(&token, devices::TOKEN),
        Ok(Asked::Pending) => no_token("authorization_pending", "Nobody has let the device in yet."),
        Ok(Asked::SlowDown) => no_token("slow_down", "Ask less often: wait five seconds more."),
        Ok(Asked::Expired) => no_token("expired_token", "The code has expired; begin again."),
        Ok(Asked::Denied) => no_token("access_denied", "The device was turned away."),
        Ok(Asked::Unknown) => no_token("invalid_grant", "No device has this code, or it was used; begin again."),
        Err(error) => Failure(error).into_response(),
    }
}

/// The one shape of an error that the command line reads here; every other one ends its login.
fn no_token(error: &str, description: &str) -> Response {
    let body = json!({ "detail": { "error": error, "error_description": description } });
    let mut response = (StatusCode::BAD_REQUEST, Json(body)).into_response();
    response.extensions_mut().insert(Rendered);
    response
}

/// Whether a credential is valid.
#[derive(Debug, Serialize, ToSchema)]
pub struct Authenticated {
    /// Always true: without a valid credential the answer is 401.
    authenticated: bool,
}

/// Whether the caller is signed in
#[utoipa::path(get, path = "/api/v1/auth/authenticated", tag = "Authentication", operation_id = "auth_authenticated",
    responses((status = 200, body = Authenticated)))]
pub async fn authenticated(_: Caller<Read>) -> Json<Authenticated> {
    Json(Authenticated { authenticated: true })
}

/// A login that ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoggedOut {
    message: &'static str,
}

/// End the login that the request was made with
///
/// A browser's session, or the token of a password or of a device: it is worthless at once. An API token is none of these.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "Authentication", operation_id = "auth_logout",
    responses((status = 200, body = LoggedOut), (status = 400, description = "An API token was shown, which no login gave")))]
pub async fn logout(State(app): State<App>, caller: Caller<Own>, Info(info): Info) -> Result<Response, Failure> {
    app.control.logout(&caller.who, &info).await?;
    let gone = [(header::SET_COOKIE, set_cookie(&app, "", 0))];
    Ok((gone, Json(LoggedOut { message: "Logged out." })).into_response())
}
