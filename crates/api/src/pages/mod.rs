//! Pages for people with a browser: to sign in, here or through the identity provider, and to let a device in. Plain HTML, no script.
//!
//! The one rule: nothing is taken from another page. A form counts only if the browser says that a page of this server sent
//! it (`credential::is_same_origin`), no page can be put into a frame, and whatever somebody typed is escaped where it is
//! shown.

mod device;
mod login;
pub mod oidc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use holdfast_control::guard::Denied;
use holdfast_model::error::Error;

use crate::App;
use crate::error::Rendered;
use crate::extract::form_field;

/// Forms are small.
const FORM_LIMIT: usize = 16 * 1024;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:4rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.4rem}label{display:block;margin:.8rem 0 .2rem}
input{font:inherit;width:100%;box-sizing:border-box;padding:.4rem .5rem;border:1px solid #8c959f;border-radius:6px}
button{font:inherit;margin:1rem .5rem 0 0;padding:.4rem 1rem;border:1px solid #1f6feb;border-radius:6px;background:#1f6feb;color:#fff}
button.other{background:#fff;color:#1b1f24;border-color:#8c959f}
.code{font:600 1.6rem ui-monospace,monospace;letter-spacing:.1em}.wrong{color:#b42318}dt{color:#57606a}dd{margin:0 0 .5rem}
details{margin-top:1.5rem}
a.button{display:inline-block;margin-top:1rem;padding:.4rem 1rem;border:1px solid #1f6feb;border-radius:6px;text-decoration:none;color:#1f6feb}";

pub fn routes() -> Router<App> {
    let style = || async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE) };
    Router::new()
        .route("/login", get(login::show).post(login::sign_in))
        .route("/logout", axum::routing::post(login::sign_out))
        .route("/device", get(device::show).post(device::decide))
        .route("/pages.css", get(style))
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
        .layer(axum::middleware::from_fn(guarded))
}

/// What every answer here carries.
async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = [
        (
            "content-security-policy",
            "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        // Not `no-referrer`: with that browsers would not say which page sends a form.
        ("referrer-policy", "same-origin"),
        ("cache-control", "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// Text as it may stand anywhere in a page, between quotes too.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A page with this in it, which is HTML already.
fn page(status: StatusCode, title: &str, content: &str) -> Response {
    let title = escaped(title);
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title} - Holdfast</title>\
         <link rel=\"stylesheet\" href=\"/pages.css\"></head><body><h1>{title}</h1>{content}</body></html>"
    );
    let mut response = (status, Html(html)).into_response();
    response.extensions_mut().insert(Rendered);
    response
}

/// A refusal as a page.
fn refused(why: Denied) -> Response {
    let (error, wait) = why.parts();
    let status = StatusCode::from_u16(error.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.is_server_error() {
        tracing::error!(code = error.code.id(), %error, "a page failed");
    }
    let mut response = page(status, "That did not work", &wrong(&error));
    if let Some(seconds) = wait {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn wrong(error: &Error) -> String {
    let (message, hint) = (escaped(&error.message), escaped(error.code.hint()));
    format!("<p class=\"wrong\">{message} {hint} ({})</p>", error.code.id())
}

/// Where to go after signing in: a path of this server.
fn local(next: &str) -> &str {
    let ours =
        next.starts_with('/') && !next.starts_with("//") && next.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    if ours { next } else { "/device" }
}

/// Text as it may stand in a query.
fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A field of a form; empty when there is none.
fn field(body: &[u8], name: &str) -> String {
    form_field(body, name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_login_leads_nowhere_else() {
        for next in ["", "https://evil.example", "//evil.example", "/\\evil.example", "device", "/a\nb", "javascript:x"]
        {
            assert_eq!(super::local(next), "/device", "{next}");
        }
        assert_eq!(super::local("/device?user_code=BCDF-GHJK"), "/device?user_code=BCDF-GHJK");
    }

    #[test]
    fn nothing_typed_becomes_html() {
        assert_eq!(super::escaped("<a b=\"c\" d='e'>&"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;");
    }
}
