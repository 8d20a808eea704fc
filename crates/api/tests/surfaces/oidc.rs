//! Logins through an identity provider that lies, hangs or is not there, and browsers that did not begin what they end. The
//! whole way with a real provider is in the end-to-end tests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_control::oidc::{Claims, LIFETIME, Newcomers, Options};
use holdfast_control::{Clock, Settings, SystemClock};
use holdfast_model::access::Role;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Answer, Server};
use crate::webhooks_receivers::Ahead;

/// What the provider does with a code.
#[derive(Debug, Clone)]
enum Manner {
    /// Nothing, for ever.
    Silent,
    /// This status and JSON.
    Says(u16, Value),
    /// Sends to where it hands out tokens to whoever asks.
    Redirects,
    Endless,
    /// An ID token that nobody signed.
    Unsigned,
}

/// A provider that describes itself as it should, and has no key.
pub struct Liar {
    pub issuer: String,
    manner: Arc<Mutex<Manner>>,
    /// Requests for tokens.
    pub asked: Arc<AtomicUsize>,
    /// Requests for its description.
    pub described: Arc<AtomicUsize>,
    /// Requests to where a redirect led.
    misled: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Shared(String, Arc<Mutex<Manner>>, [Arc<AtomicUsize>; 3]);

impl Liar {
    async fn start() -> Self {
        Self::start_on("http", |listener| listener).await
    }

    /// Behind whatever `wrap` makes of its port.
    pub async fn start_on<L>(scheme: &str, wrap: impl FnOnce(TcpListener) -> L) -> Self
    where
        L: axum::serve::Listener,
        L::Addr: std::fmt::Debug,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("{scheme}://{}", listener.local_addr().expect("an address"));
        let listener = wrap(listener);
        let manner = Arc::new(Mutex::new(Manner::Says(400, json!({ "error": "invalid_grant" }))));
        let counts: [Arc<AtomicUsize>; 3] = Default::default();
        let shared = Shared(issuer.clone(), manner.clone(), counts.clone());
        let app = axum::Router::new().fallback(answer).with_state(shared);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        let [asked, described, misled] = counts;
        Self { issuer, manner, asked, described, misled, _task: AbortOnDropHandle::new(task) }
    }

    fn is(&self, manner: Manner) {
        *self.manner.lock().expect("no panic") = manner;
    }
}

async fn answer(
    State(Shared(issuer, manner, [asked, described, misled])): State<Shared>,
    uri: Uri,
    body: Bytes,
) -> Response {
    match uri.path() {
        "/.well-known/openid-configuration" => {
            described.fetch_add(1, Ordering::SeqCst);
            axum::Json(json!({
                "issuer": issuer, "authorization_endpoint": format!("{issuer}/auth"), "token_endpoint": format!("{issuer}/token"),
                "jwks_uri": format!("{issuer}/jwks"), "response_types_supported": ["code"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256", "none"],
            }))
            .into_response()
        }
        "/jwks" => axum::Json(json!({ "keys": [] })).into_response(),
        "/token" => {
            asked.fetch_add(1, Ordering::SeqCst);
            let manner = manner.lock().expect("no panic").clone();
            let form: Vec<(String, String)> = url::form_urlencoded::parse(&body).into_owned().collect();
            assert!(form.iter().any(|(name, value)| name == "code_verifier" && value.len() == 43), "{form:?}");
            match manner {
                Manner::Silent => std::future::pending().await,
                Manner::Says(status, body) => {
                    (StatusCode::from_u16(status).expect("a status"), axum::Json(body)).into_response()
                }
                Manner::Redirects => {
                    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("{issuer}/elsewhere"))])
                        .into_response()
                }
                Manner::Endless => {
                    let piece = Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b' '; 4096]));
                    let body = Body::from_stream(futures_util::stream::repeat_with(move || piece.clone()));
                    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
                }
                Manner::Unsigned => axum::Json(unsigned(&issuer)).into_response(),
            }
        }
        "/elsewhere" => {
            misled.fetch_add(1, Ordering::SeqCst);
            axum::Json(unsigned(&issuer)).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Tokens for an administrator, if anybody believes them.
fn unsigned(issuer: &str) -> Value {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let now = SystemClock.now().seconds();
    let claims =
        json!({ "iss": issuer, "sub": "root", "aud": "hf", "iat": now, "exp": now + 600, "email": "admin@localhost" });
    let token = format!("{}.{}.", part(json!({ "alg": "none" })), part(claims));
    json!({ "access_token": "a", "token_type": "Bearer", "id_token": token })
}

pub fn options(issuer: &str) -> Options {
    Options {
        issuer: issuer.to_owned(),
        client_id: "hf".to_owned(),
        client_secret: Some("the client's secret".to_owned().into()),
        authorities: Vec::new(),
        name: "Corp <b>ID</b>".to_owned(),
        scopes: vec!["email".to_owned()],
        claims: Claims { username: "preferred_username".to_owned(), email: "email".to_owned(), email_verified: None },
        link_email: true,
        newcomers: Some(Newcomers { workspace: "default".to_owned(), role: Role::Member }),
        patience: Duration::from_secs(2),
    }
}

async fn with(issuer: &str) -> Server {
    Server::start_with(Settings { oidc: Some(options(issuer)), ..Settings::default() }).await
}

pub async fn get(server: &Server, path: &str, cookie: &str, accept: &str) -> Answer {
    let request = Request::get(path).header("cookie", cookie).header("accept", accept);
    server.send(request.body(Body::empty()).expect("a request")).await
}

const PAGE: &str = "text/html,application/xhtml+xml,application/json;q=0.9";
pub const JSON: &str = "application/json";

/// A login that was begun: the cookie, and the state that the provider was given.
pub async fn begun(server: &Server) -> (String, String) {
    let answer = get(server, "/auth/oidc/login?next=/device", "", PAGE).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    let cookie = answer.headers["set-cookie"].to_str().expect("text");
    for word in ["HttpOnly", "SameSite=Lax", "Secure", "Path=/", "__Host-holdfast_oidc=", "Max-Age=600"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    let url = url::Url::parse(answer.headers["location"].to_str().expect("text")).expect("a URL");
    let parameter = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    assert_eq!(parameter("redirect_uri").as_deref(), Some("https://cloud.example/auth/oidc/callback"));
    assert_eq!(parameter("code_challenge_method").as_deref(), Some("S256"));
    assert_eq!(
        (parameter("response_type").as_deref(), parameter("scope").as_deref()),
        (Some("code"), Some("openid email"))
    );
    let (state, nonce) = (parameter("state").expect("a state"), parameter("nonce").expect("a nonce"));
    assert!(state != nonce && !cookie.contains(&state) && !cookie.contains(&nonce));
    (cookie.split(';').next().expect("a pair").to_owned(), state)
}

/// What the callback answers to this, as (status, code); and that no session came of it.
pub async fn ended(server: &Server, cookie: &str, query: &str) -> (u16, String) {
    let answer = get(server, &format!("/auth/oidc/callback?{query}"), cookie, JSON).await;
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().map(|c| c.to_str().expect("text")).collect();
    assert!(
        matches!(cookies[..], [one] if one.starts_with("__Host-holdfast_oidc=;") && one.contains("Max-Age=0")),
        "{cookies:?}"
    );
    assert_eq!(answer.headers["cache-control"], "no-store");
    let body = answer.json();
    (answer.status.as_u16(), body["error"]["code"].as_str().expect("a code").to_owned())
}

#[tokio::test]
async fn without_a_provider_there_is_nothing() {
    let server = Server::start().await;
    for path in ["/auth/oidc/login", "/auth/oidc/callback?code=a&state=b", "/auth/oidc/callback"] {
        for accept in [PAGE, JSON] {
            let body = get(&server, path, "", accept).await.expect(404);
            assert_eq!(body["error"]["code"], "HF-0003", "{path}");
        }
    }
    assert!(!get(&server, "/login", "", PAGE).await.text().contains("oidc"));
}

#[tokio::test]
async fn the_login_page_offers_the_provider() {
    let server = with("http://127.0.0.1:9").await;
    let page = get(&server, "/login?next=%2Fdevice%3Fuser_code%3DBCDF-GHJK", "", PAGE).await;
    let text = page.text();
    assert!(text.contains("Log in with Corp &lt;b&gt;ID&lt;/b&gt;") && !text.contains("<b>"), "{text}");
    assert!(text.contains("href=\"/auth/oidc/login?next=%2Fdevice%3Fuser_code%3DBCDF-GHJK\""), "{text}");
    let evil = get(&server, "/login?next=https://evil.example", "", PAGE).await.text();
    assert!(evil.contains("/auth/oidc/login?next=%2Fdevice\"") && !evil.contains("evil"), "{evil}");
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_told_as_a_page_or_as_json() {
    let server = with("http://127.0.0.1:9").await;
    let body = get(&server, "/auth/oidc/login", "", JSON).await.expect(503);
    assert_eq!(body["error"]["code"], "HF-0423");
    let page = get(&server, "/auth/oidc/login", "", PAGE).await;
    assert_eq!(page.status, 503);
    assert!(page.text().starts_with("<!doctype html>") && page.text().contains("HF-0423"), "{}", page.text());
    assert!(page.headers["content-security-policy"].to_str().expect("text").contains("default-src 'none'"));
    // It is in the way of nobody else.
    assert_eq!(get(&server, "/login", "", PAGE).await.status, 200);
}

#[tokio::test]
async fn only_the_browser_that_began_ends_and_only_once() {
    let liar = Liar::start().await;
    let server = with(&liar.issuer).await;
    let ((mine, state), (theirs, other)) = (begun(&server).await, begun(&server).await);
    assert_eq!(liar.described.load(Ordering::SeqCst), 1, "its description is kept");
    let foreign = (400, "HF-0420".to_owned());
    let value = mine.split_once('=').expect("a pair").1;
    let forged = format!("__Host-holdfast_oidc={}", URL_SAFE_NO_PAD.encode([7; 80]));
    for (cookie, query) in [
        ("", format!("code=c&state={state}")),
        (&*theirs, format!("code=c&state={state}")),
        (&*mine, format!("code=c&state={other}")),
        (&*mine, "code=c&state=".to_owned()),
        (&*mine, "code=c".to_owned()),
        (&*mine, String::new()),
        (&*mine, format!("error=access_denied&state={other}")),
        (&*forged, format!("code=c&state={state}")),
        (&*format!("__Host-holdfast_session={value}"), format!("code=c&state={state}")),
        (&*format!("__Host-holdfast_oidc={}A", &value[..value.len() - 1]), format!("code=c&state={state}")),
    ] {
        // The last letter may have been an A.
        if cookie != mine || !query.contains(&state) {
            assert_eq!(ended(&server, cookie, &query).await, foreign, "{cookie} {query}");
        }
    }
    assert_eq!(liar.asked.load(Ordering::SeqCst), 0, "the provider was asked for nothing");
    // Many at once, with the right cookie and the right state: one gets as far as the provider.
    let query = format!("code=c&state={state}");
    let all = futures_util::future::join_all((0..20).map(|_| ended(&server, &mine, &query))).await;
    let reached: Vec<_> = all.iter().filter(|got| **got != foreign).collect();
    assert_eq!(reached, [&(502, "HF-0424".to_owned())]);
    assert_eq!(liar.asked.load(Ordering::SeqCst), 1);
    assert_eq!(ended(&server, &mine, &query).await, foreign);
    // No code, and no error: the login is over all the same.
    assert_eq!(ended(&server, &theirs, &format!("state={other}")).await, foreign);
    assert_eq!(ended(&server, &theirs, &format!("code=c&state={other}")).await, foreign);
    let tables = server.tables().await;
    for secret in [value, &state, &other, "the client's secret"] {
        assert!(!tables.contains(secret), "{secret} is in the database");
    }
    assert_eq!(server.number("SELECT COUNT(*) FROM api_key WHERE kind = 'session'").await, 0);
}

#[tokio::test]
async fn a_login_is_over_after_ten_minutes() {
    let (liar, clock) = (Liar::start().await, Arc::new(Ahead::default()));
    let settings = Settings { oidc: Some(options(&liar.issuer)), ..Settings::default() };
    let server = Server::start_at(settings, clock.clone()).await;
    let ((one, state), (two, other)) = (begun(&server).await, begun(&server).await);
    assert_eq!(LIFETIME, Duration::from_secs(600));
    clock.by(540);
    assert_eq!(ended(&server, &one, &format!("code=c&state={state}")).await.1, "HF-0424");
    clock.by(60);
    assert_eq!(ended(&server, &two, &format!("code=c&state={other}")).await, (400, "HF-0421".to_owned()));
    assert_eq!(ended(&server, &one, &format!("code=c&state={state}")).await, (400, "HF-0421".to_owned()));
    // What is over is not kept.
    assert_eq!(server.number("SELECT COUNT(*) FROM oidc_login").await, 1);
    let (three, state) = begun(&server).await;
    clock.by(540);
    assert_eq!(ended(&server, &three, &format!("code=c&state={state}")).await.1, "HF-0424");
    assert_eq!(server.number("SELECT COUNT(*) FROM oidc_login").await, 1);
}

#[tokio::test]
async fn nothing_a_provider_does_lets_somebody_in_unproven() {
    let liar = Liar::start().await;
    let server = with(&liar.issuer).await;
    let tokens = |id: Value| json!({ "access_token": "a", "token_type": "Bearer", "id_token": id });
    for (manner, status, code) in [
        (Manner::Silent, 503, "HF-0423"),
        (Manner::Endless, 503, "HF-0423"),
        (Manner::Redirects, 502, "HF-0424"),
        (Manner::Says(500, json!({})), 502, "HF-0424"),
        (Manner::Says(401, json!({ "error": "invalid_client", "error_description": "<b>" })), 502, "HF-0424"),
        (Manner::Says(200, json!([])), 502, "HF-0424"),
        (Manner::Says(200, tokens(json!("a.b.c"))), 502, "HF-0424"),
        (Manner::Says(200, json!({ "access_token": "a", "token_type": "Bearer" })), 401, "HF-0425"),
        (Manner::Unsigned, 401, "HF-0425"),
    ] {
        liar.is(manner.clone());
        let (cookie, state) = begun(&server).await;
        let got = ended(&server, &cookie, &format!("code=c&state={state}&iss={}", liar.issuer)).await;
        assert_eq!(got, (status, code.to_owned()), "{manner:?}");
    }
    assert_eq!(liar.misled.load(Ordering::SeqCst), 0, "a redirect was followed");
    // Another provider's answer, and one that refuses; what it says is a word or nothing.
    let (cookie, state) = begun(&server).await;
    let other = ended(&server, &cookie, &format!("code=c&state={state}&iss=https://evil.example")).await;
    assert_eq!(other, (401, "HF-0425".to_owned()));
    for word in ["access_denied", "%3Cscript%3E"] {
        let (cookie, state) = begun(&server).await;
        let page = get(&server, &format!("/auth/oidc/callback?error={word}&state={state}"), &cookie, PAGE).await;
        assert_eq!(page.status, 403);
        assert_eq!(page.text().contains("access_denied"), word == "access_denied", "{}", page.text());
        assert!(page.text().contains("HF-0422") && !page.text().contains("<script>"), "{}", page.text());
    }
    assert_eq!(server.number("SELECT COUNT(*) FROM user_account").await, 1);
    assert_eq!(server.number("SELECT COUNT(*) FROM user_identity").await, 0);
    assert_eq!(server.number("SELECT COUNT(*) FROM api_key WHERE kind = 'session'").await, 0);
}

/// A provider that describes another issuer is not this one.
#[tokio::test]
async fn a_description_of_somebody_else_is_not_taken() {
    let liar = Liar::start().await;
    let server = with(&liar.issuer.replace("127.0.0.1", "localhost")).await;
    assert_eq!(get(&server, "/auth/oidc/login", "", JSON).await.expect(502)["error"]["code"], "HF-0424");
}

#[tokio::test]
async fn logins_are_counted_by_address() {
    let liar = Liar::start().await;
    let server = with(&liar.issuer).await;
    let mut tries = 0;
    let refused = loop {
        let answer = get(&server, "/auth/oidc/login", "", PAGE).await;
        tries += 1;
        if answer.status != 303 {
            break answer;
        }
    };
    assert_eq!((refused.status.as_u16(), (60..65).contains(&tries)), (429, true), "{tries}");
    assert!(refused.headers.contains_key("retry-after"));
}
