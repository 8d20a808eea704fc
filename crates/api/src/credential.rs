//! What a request shows to be let in: an API key in a header, or a browser's session in a cookie.
//!
//! The one rule: browsers send a cookie with whatever request any page makes, so a session counts for a request that
//! changes something only if the browser itself says that a page of ours made it ([`is_same_origin`]). Keys are sent by
//! nobody unasked, and count for everything.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap, Method};
use holdfast_control::Principal;
use holdfast_control::identity::Presented;
use holdfast_model::error::Error;
use sha2::{Digest, Sha256};

use crate::App;
use crate::extract::header;

/// Name of the cookie of a session. The prefix makes browsers insist that it came over TLS, from this very host.
const COOKIE_TLS: &str = "__Host-holdfast_session";
/// Without TLS, where browsers do not take the other one.
const COOKIE: &str = "holdfast_session";
/// The same of a login that is on its way through the identity provider.
const LOGIN_COOKIE_TLS: &str = "__Host-holdfast_oidc";
const LOGIN_COOKIE: &str = "holdfast_oidc";

/// What browsers keep for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cookie {
    /// Of somebody who is signed in.
    Session,
    /// Of a login through the identity provider, between its two halves.
    Login,
}

impl Cookie {
    /// Its name over TLS, and without.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Session => (COOKIE_TLS, COOKIE),
            Self::Login => (LOGIN_COOKIE_TLS, LOGIN_COOKIE),
        }
    }
}

/// A credential, and where it came from. Never printed: it holds the secret.
pub struct Credential {
    secret: String,
    is_cookie: bool,
    from: Option<IpAddr>,
}

impl Credential {
    /// `X-API-Key`, else `Authorization: Bearer`, else the session's cookie.
    pub fn of(method: &Method, headers: &HeaderMap, extensions: &Extensions) -> Option<Self> {
        let from = client_address(extensions);
        let bearer = header(headers, "authorization").and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        if let Some(key) = header(headers, "x-api-key").or(bearer) {
            return (!key.is_empty()).then(|| Self { secret: key.to_owned(), is_cookie: false, from });
        }
        let safe = matches!(*method, Method::GET | Method::HEAD);
        let secret = cookie(headers, Cookie::Session).filter(|_| safe || is_same_origin(headers))?;
        Some(Self { secret: secret.to_owned(), is_cookie: true, from })
    }

    /// Names the secret without being it: the first half of its sha256.
    pub fn digest(&self) -> [u8; 16] {
        let digest: [u8; 32] = Sha256::digest(self.secret.as_bytes()).into();
        std::array::from_fn(|i| digest[i])
    }

    /// Whoever it belongs to, if it may be used like this.
    pub async fn holder(&self, app: &App) -> Result<Principal, Error> {
        let shown = Presented { secret: &self.secret, is_cookie: self.is_cookie, from: self.from };
        app.control.authenticate_shown(shown).await
    }
}

/// The other end of the connection. What headers say of addresses behind it is not looked at: anybody can write them.
pub fn client_address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// What a cookie of ours holds. The one that only TLS can have set counts first.
pub fn cookie(headers: &HeaderMap, which: Cookie) -> Option<&str> {
    let cookies = headers.get_all("cookie").into_iter().filter_map(|value| value.to_str().ok());
    let pairs: Vec<(&str, &str)> =
        cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('=')).collect();
    let named = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let (tls, plain) = which.names();
    named(tls).or_else(|| named(plain)).filter(|value| !value.is_empty())
}

/// `Set-Cookie` for a session of this many seconds; 0 ends it.
pub fn set_cookie(app: &App, secret: &str, seconds: u64) -> String {
    set(app, Cookie::Session, secret, seconds)
}

/// `Set-Cookie` for a login through the identity provider that may take this many seconds; 0 ends it.
pub fn set_login_cookie(app: &App, sealed: &str, seconds: u64) -> String {
    set(app, Cookie::Login, sealed, seconds)
}

/// Lax, so that a link from elsewhere finds who is signed in, and the way back from the provider the login.
fn set(app: &App, which: Cookie, value: &str, seconds: u64) -> String {
    let (tls, plain) = which.names();
    let (name, secure) =
        if app.control.settings.public_url.starts_with("https:") { (tls, "; Secure") } else { (plain, "") };
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}")
}

/// Whether the browser says that a page of this server made the request. A client that says nothing of it is no browser,
/// and has no business with cookies.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    match header(headers, "sec-fetch-site") {
        // `none`: typed by the user, which no page can do.
        Some(site) => matches!(site, "same-origin" | "none"),
        None => {
            // Browsers that do not say it yet send the origin with all but GET.
            let origin = header(headers, "origin").and_then(|origin| origin.split_once("://"));
            let host = header(headers, "host");
            origin.zip(host).is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    fn shown(method: Method, pairs: &[(&'static str, &'static str)]) -> Option<(String, bool)> {
        let credential = Credential::of(&method, &headers(pairs), &Extensions::new());
        credential.map(|c| (c.secret, c.is_cookie))
    }

    #[test]
    fn a_key_counts_before_a_session() {
        let cookie = ("cookie", "a=b; holdfast_session=s; c=d");
        assert_eq!(shown(Method::GET, &[cookie]), Some(("s".to_owned(), true)));
        assert_eq!(shown(Method::GET, &[cookie, ("x-api-key", "k")]), Some(("k".to_owned(), false)));
        assert_eq!(shown(Method::GET, &[cookie, ("authorization", "Bearer k")]), Some(("k".to_owned(), false)));
        // An empty key is a mistake and no reason to look further.
        assert_eq!(shown(Method::GET, &[cookie, ("x-api-key", "")]), None);
        assert_eq!(shown(Method::GET, &[("cookie", "holdfast_session=")]), None);
        assert_eq!(shown(Method::GET, &[]), None);
        let both = [("cookie", "holdfast_session=weak"), ("cookie", "__Host-holdfast_session=strong")];
        assert_eq!(shown(Method::GET, &both), Some(("strong".to_owned(), true)));
        // A login that is on its way is no session.
        assert_eq!(shown(Method::GET, &[("cookie", "holdfast_oidc=s; __Host-holdfast_oidc=s")]), None);
    }

    #[test]
    fn a_session_changes_something_only_from_our_own_pages() {
        let cookie = ("cookie", "holdfast_session=s");
        let host = ("host", "cloud.example:8440");
        let counts =
            |extra: &[(&'static str, &'static str)]| shown(Method::POST, &[&[cookie, host], extra].concat()).is_some();
        assert!(counts(&[("sec-fetch-site", "same-origin")]));
        assert!(counts(&[("origin", "https://cloud.example:8440")]));
        for site in ["cross-site", "same-site", ""] {
            assert!(!counts(&[("sec-fetch-site", site), ("origin", "https://cloud.example:8440")]), "{site}");
        }
        for origin in ["https://evil.example", "https://cloud.example", "null", "https://evil.cloud.example:8440"] {
            assert!(!counts(&[("origin", origin)]), "{origin}");
        }
        assert!(!counts(&[]));
        // A key does whatever it is sent for.
        assert!(shown(Method::POST, &[("x-api-key", "k"), ("origin", "https://evil.example")]).is_some());
    }
}
