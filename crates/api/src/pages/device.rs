//! `/device`: somebody who is signed in types the code that a device shows, sees what wants in, and decides.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Extensions, HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use holdfast_control::Principal;
use holdfast_control::guard::Denied;
use holdfast_model::error::{Code, Error};

use super::{encoded, escaped, field, page, refused, wrong};
use crate::App;
use crate::credential::Credential;
use crate::extract::{Info, Params};
use crate::phala::logins::From;

async fn signed_in(app: &App, method: &Method, headers: &HeaderMap, extensions: &Extensions) -> Option<Principal> {
    let credential = Credential::of(method, headers, extensions)?;
    credential.holder(app).await.ok()
}

/// The page that asks for the code.
fn ask(status: StatusCode, who: &Principal, message: &str) -> Response {
    let content = format!(
        "{message}<form method=\"get\" action=\"/device\"><label for=\"c\">Code that the device shows</label>\
         <input id=\"c\" name=\"user_code\" class=\"code\" maxlength=\"12\" autocomplete=\"off\" autofocus>\
         <button>Continue</button></form>{}",
        whoami(who)
    );
    page(status, "Let a device in", &content)
}

fn whoami(who: &Principal) -> String {
    format!(
        "<form method=\"post\" action=\"/logout\"><p>Signed in as {}. <button class=\"other\">Sign out</button></p></form>",
        escaped(&who.username)
    )
}

pub async fn show(
    State(app): State<App>,
    From(from): From,
    headers: HeaderMap,
    params: Params,
    extensions: Extensions,
) -> Response {
    let code = params.text("user_code").unwrap_or_default();
    let Some(who) = signed_in(&app, &Method::GET, &headers, &extensions).await else {
        let here = if code.is_empty() { "/device".to_owned() } else { format!("/device?user_code={}", encoded(code)) };
        return Redirect::to(&format!("/login?next={}", encoded(&here))).into_response();
    };
    if code.is_empty() {
        return ask(StatusCode::OK, &who, "");
    }
    let waiting = match app.control.device_waiting(code, from).await {
        Ok(waiting) => waiting,
        Err(Denied::Error(error)) if error.code == Code::DeviceCodeUnknown => {
            return ask(StatusCode::NOT_FOUND, &who, &wrong(&error));
        }
        Err(why) => return refused(why),
    };
    let code = holdfast_control::devices::user_code(code).unwrap_or_default();
    let content = format!(
        "<p>Does the device show this code?</p><p class=\"code\">{code}</p>\
         <dl><dt>It calls itself</dt><dd>{}</dd><dt>It asked from</dt><dd>{}</dd><dt>At</dt><dd>{}</dd>\
         <dt>It will act as</dt><dd>{} in {}</dd></dl>\
         <p>It can do all that you can do in this workspace, for 90 days, or until you delete its token.</p>\
         <form method=\"post\" action=\"/device\"><input type=\"hidden\" name=\"user_code\" value=\"{code}\">\
         <button name=\"decision\" value=\"approve\">Let it in</button>\
         <button name=\"decision\" value=\"deny\" class=\"other\">Turn it away</button></form>{}",
        escaped(&waiting.client),
        escaped(waiting.client_address.as_deref().unwrap_or("an unknown address")),
        waiting.since,
        escaped(&who.username),
        escaped(&who.workspace_name),
        whoami(&who),
    );
    page(StatusCode::OK, "Let a device in", &content)
}

pub async fn decide(
    State(app): State<App>,
    From(from): From,
    Info(info): Info,
    headers: HeaderMap,
    extensions: Extensions,
    body: Bytes,
) -> Response {
    let Some(who) = signed_in(&app, &Method::POST, &headers, &extensions).await else {
        return refused(Error::new(Code::Unauthenticated, "Sign in, and decide on this server's own page.").into());
    };
    let approve = match field(&body, "decision").as_str() {
        "approve" => true,
        "deny" => false,
        _ => return refused(Error::field("body", "decision", "enum", "must be approve or deny").into()),
    };
    match app.control.device_decide(&who, &info, &field(&body, "user_code"), approve, from).await {
        Ok(()) if approve => page(StatusCode::OK, "The device is in", "<p>You can close this page.</p>"),
        Ok(()) => page(StatusCode::OK, "The device was turned away", "<p>You can close this page.</p>"),
        Err(Denied::Error(error)) if error.code == Code::DeviceCodeUnknown => {
            ask(StatusCode::NOT_FOUND, &who, &wrong(&error))
        }
        Err(why) => refused(why),
    }
}
