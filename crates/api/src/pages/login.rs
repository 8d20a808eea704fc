//! `/login`: sign in with a password or an API key, or go on to the identity provider. What comes of it is a session in a
//! cookie.
//!
//! The one rule: whoever signs in with a key gets no more than the key may, and no longer than the key lives.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Extensions, HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use holdfast_control::guard::Denied;
use holdfast_control::identity::Presented;
use holdfast_control::{Principal, RequestInfo};
use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_store::api_keys::Kind;
use zeroize::Zeroizing;

use super::{encoded, escaped, field, local, page, refused, wrong};
use crate::App;
use crate::credential::{Credential, is_same_origin, set_cookie};
use crate::extract::{Info, Params};
use crate::phala::logins::From;

fn form(app: &App, status: StatusCode, next: &str, message: &str) -> Response {
    let through = app.control.oidc_name().map(|name| {
        let (next, name) = (encoded(local(next)), escaped(name));
        format!("<p><a class=\"button\" href=\"/auth/oidc/login?next={next}\">Log in with {name}</a></p>")
    });
    let through = through.unwrap_or_default();
    let next = escaped(local(next));
    let content = format!(
        "{message}{through}<form method=\"post\" action=\"/login\"><input type=\"hidden\" name=\"next\" value=\"{next}\">\
         <label for=\"u\">Name or e-mail address</label><input id=\"u\" name=\"username\" autocomplete=\"username\" autofocus>\
         <label for=\"p\">Password</label>\
         <input id=\"p\" name=\"password\" type=\"password\" autocomplete=\"current-password\">\
         <button>Sign in</button></form>\
         <details><summary>Sign in with an API key</summary>\
         <form method=\"post\" action=\"/login\"><input type=\"hidden\" name=\"next\" value=\"{next}\">\
         <label for=\"k\">API key</label><input id=\"k\" name=\"api_key\" type=\"password\" autocomplete=\"off\">\
         <button>Sign in</button></form></details>"
    );
    page(status, "Sign in", &content)
}

pub async fn show(State(app): State<App>, params: Params) -> Response {
    form(&app, StatusCode::OK, params.text("next").unwrap_or_default(), "")
}

pub async fn sign_in(
    State(app): State<App>,
    From(from): From,
    Info(info): Info,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let next = field(&body, "next");
    if !is_same_origin(&headers) {
        return refused(Error::new(Code::Forbidden, "The form was not sent by this server's page.").into());
    }
    let key = Zeroizing::new(field(&body, "api_key").trim().to_owned());
    let who = if key.is_empty() {
        app.control.login(&field(&body, "username"), Zeroizing::new(field(&body, "password")), from).await
    } else {
        by_key(&app, &key, from).await
    };
    let shown = (!key.is_empty()).then_some(key.as_str());
    let who = match who {
        Ok(who) => who,
        Err(why @ Denied::Wait(_)) => return refused(why),
        Err(Denied::Error(error)) if error.code.http() >= 500 => return refused(error.into()),
        Err(Denied::Error(error)) => return form(&app, StatusCode::UNAUTHORIZED, &next, &wrong(&error)),
    };
    // Of a form with a password not even a hash is kept.
    let info = RequestInfo { idempotency: None, ..info };
    match app.control.login_issue(&who, &info, Kind::Session, shown).await {
        Ok((secret, lifetime)) => {
            let cookie = set_cookie(&app, &secret, lifetime.as_secs());
            ([(header::SET_COOKIE, cookie)], Redirect::to(local(&next))).into_response()
        }
        Err(error) => refused(error.into()),
    }
}

async fn by_key(app: &App, key: &str, from: Option<std::net::IpAddr>) -> Result<Principal, Denied> {
    app.control.page_attempt(from)?;
    let who = app.control.authenticate_shown(Presented { secret: key, is_cookie: false, from }).await?;
    who.require(Action::Own)?;
    Ok(who)
}

pub async fn sign_out(
    State(app): State<App>,
    Info(info): Info,
    headers: HeaderMap,
    extensions: Extensions,
) -> Response {
    let credential = Credential::of(&Method::POST, &headers, &extensions);
    if let Some(credential) = credential
        && let Ok(who) = credential.holder(&app).await
        && let Err(error) = app.control.logout(&who, &info).await
    {
        return refused(error.into());
    }
    ([(header::SET_COOKIE, set_cookie(&app, "", 0))], Redirect::to("/login")).into_response()
}
