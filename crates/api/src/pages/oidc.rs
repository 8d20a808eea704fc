//! `/auth/oidc/login` and `/auth/oidc/callback`: to the identity provider and back, with a session at the end.
//!
//! The one rule: neither answer tells a secret. What the browser has to keep is in a cookie that no page can read, and
//! whatever goes wrong is a page (or JSON, for who asks for that) with a code, after which the cookie is gone.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use holdfast_control::guard::Denied;
use holdfast_control::oidc::{Answer, LIFETIME};
use utoipa::IntoResponses;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{local, refused};
use crate::App;
use crate::credential::{Cookie, cookie, set_cookie, set_login_cookie};
use crate::extract::{Info, Params, header};
use crate::phala::logins::{From, denied};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(begin)).routes(routes!(end)).layer(axum::middleware::from_fn(super::guarded))
}

/// What both ways refuse alike.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only its documentation is used")]
enum Refusals {
    /// No identity provider is configured
    #[response(status = 404)]
    NoProvider,
    /// Too many attempts; Retry-After says when to try again
    #[response(status = 429)]
    TooOften,
    /// The provider cannot be reached
    #[response(status = 503)]
    Unreachable,
}

/// Sign in through the identity provider
///
/// Sends the browser to the provider that the operator has configured (`oidc_issuer`), with OpenID Connect's authorization code
/// flow and PKCE. It comes back to `/auth/oidc/callback`, within ten minutes.
#[utoipa::path(get, path = "/auth/oidc/login", tag = "Logins", operation_id = "oidc_login", security(()),
    params(("next" = Option<String>, Query, description = "Path of this server to go to afterwards")),
    responses(
    (status = 303, description = "To the provider"),
    Refusals,
    (status = 502, description = "The provider does not describe itself as it should"),
))]
pub async fn begin(State(app): State<App>, From(from): From, headers: HeaderMap, params: Params) -> Response {
    let next = local(params.text("next").unwrap_or_default());
    match app.control.oidc_begin(next, from).await {
        Ok(begun) => {
            let cookie = set_login_cookie(&app, &begun.cookie, LIFETIME.as_secs());
            ([(header::SET_COOKIE, cookie)], Redirect::to(&begun.url)).into_response()
        }
        Err(why) => told(&headers, why),
    }
}

/// Come back from the identity provider
///
/// Only the provider sends browsers here. A login that succeeded has a session in a cookie and goes back to the page that
/// asked for it; one that did not says why, and can be begun again.
#[utoipa::path(get, path = "/auth/oidc/callback", tag = "Logins", operation_id = "oidc_callback", security(()),
    params(("code" = Option<String>, Query, description = "The provider's code"),
        ("state" = Option<String>, Query, description = "Names the login"),
        ("error" = Option<String>, Query, description = "Why the provider refuses"),
        ("iss" = Option<String>, Query, description = "The provider that answers (RFC 9207)")),
    responses(
    (status = 303, description = "Signed in, and back to the page that asked"),
    (status = 400, description = "This browser began no such login, or it is over"),
    (status = 401, description = "The provider's token is not believed"),
    (status = 403, description = "The provider refused, or nobody here has this identity"),
    Refusals,
    (status = 502, description = "The provider's answer cannot be used"),
))]
pub async fn end(
    State(app): State<App>,
    From(from): From,
    Info(info): Info,
    headers: HeaderMap,
    params: Params,
) -> Response {
    let answer = Answer {
        code: params.text("code"),
        state: params.text("state"),
        error: params.text("error"),
        issuer: params.text("iss"),
    };
    let over = (header::SET_COOKIE, set_login_cookie(&app, "", 0));
    match app.control.oidc_end(cookie(&headers, Cookie::Login), &answer, &info, from).await {
        Ok(ended) => {
            let session = (header::SET_COOKIE, set_cookie(&app, &ended.secret, ended.lifetime.as_secs()));
            (AppendHeaders([session, over]), Redirect::to(local(&ended.next))).into_response()
        }
        Err(why) => (AppendHeaders([over]), told(&headers, why)).into_response(),
    }
}

/// A refusal as a page, or as JSON for a client that asks for it.
fn told(headers: &HeaderMap, why: Denied) -> Response {
    let accepts = header(headers, "accept").unwrap_or_default();
    let not_there = matches!(&why, Denied::Error(error) if error.code == holdfast_model::error::Code::RouteNotFound);
    if not_there || (accepts.contains("application/json") && !accepts.contains("text/html")) {
        return denied(why);
    }
    refused(why)
}
