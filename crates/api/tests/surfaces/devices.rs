//! A device's login from its first request to its token, through the page and with everything that can go wrong; and the
//! page itself.

use axum::body::Body;
use axum::http::Request;
use holdfast_control::{SystemClock, passwords};
use serde_json::{Value, json};

use crate::support::{Answer, Server, V2026};

const PASSWORD: &str = "a good password";

async fn begin(server: &Server) -> Value {
    let body = json!({ "client_id": "phala-<cli>", "scope": "user:profile cvms:* nodes:*" });
    server.without_key().post("/auth/device/code", &body).await.expect(200)
}

async fn ask(server: &Server, device: &Value) -> Answer {
    let body = json!({
        "device_code": device["device_code"], "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
    });
    server.without_key().post("/auth/device/token", &body).await
}

async fn error(server: &Server, device: &Value) -> String {
    ask(server, device).await.expect(400)["detail"]["error"].as_str().expect("a word").to_owned()
}

/// A browser: it keeps cookies, and says where a form was.
struct Browser<'a> {
    server: &'a Server,
    cookie: String,
    site: &'static str,
}

impl<'a> Browser<'a> {
    fn new(server: &'a Server) -> Self {
        Self { server, cookie: String::new(), site: "same-origin" }
    }

    async fn send(&mut self, request: axum::http::request::Builder, body: String) -> Answer {
        let request = request.header("cookie", &self.cookie).header("host", "cloud.example");
        let answer = self.server.send(request.body(Body::from(body)).expect("a request")).await;
        if let Some(cookie) = answer.headers.get("set-cookie") {
            let cookie = cookie.to_str().expect("text");
            for word in ["HttpOnly", "SameSite=Lax", "Secure", "Path=/", "__Host-holdfast_session="] {
                assert!(cookie.contains(word), "{cookie}");
            }
            self.cookie = cookie.split(';').next().expect("a pair").to_owned();
        }
        answer
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.send(Request::get(path), String::new()).await
    }

    async fn post(&mut self, path: &str, form: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        self.send(Request::post(path).header("sec-fetch-site", self.site), body).await
    }

    async fn sign_in(&mut self) {
        passwords::set(&self.server.control.store, &SystemClock, "admin", PASSWORD).await.expect("a password");
        let answer = self.post("/login", &[("username", "admin"), ("password", PASSWORD)]).await;
        assert_eq!(answer.status, 303, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_device_is_let_in_on_the_page() {
    let server = Server::start().await;
    let device = begin(&server).await;
    let code = device["user_code"].as_str().expect("a code");
    assert_eq!(device["verification_uri"], "https://cloud.example/device");
    assert_eq!(device["verification_uri_complete"], format!("https://cloud.example/device?user_code={code}"));
    assert_eq!((&device["interval"], &device["expires_in"]), (&json!(5), &json!(900)));
    assert_eq!(error(&server, &device).await, "authorization_pending");
    // Five seconds have not passed.
    assert_eq!(error(&server, &device).await, "slow_down");

    let mut browser = Browser::new(&server);
    let page = format!("/device?user_code={code}");
    let away = browser.get(&page).await;
    assert_eq!(away.status, 303);
    let login = away.headers["location"].to_str().expect("text").to_owned();
    let form = browser.get(&login).await;
    assert_eq!(form.status, 200);
    assert!(form.text().contains(&format!("value=\"{page}\"")), "{}", form.text());
    browser.sign_in().await;
    let shown = browser.get(&page).await;
    assert_eq!(shown.headers["cache-control"], "no-store");
    let policy = shown.headers["content-security-policy"].to_str().expect("text");
    assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"), "{policy}");
    let text = shown.text();
    assert!(text.contains(code) && text.contains("phala-&lt;cli&gt;") && !text.contains("<cli>"), "{text}");
    // Nothing was decided by looking at it.
    assert_eq!(server.number("SELECT COUNT(*) FROM device_login WHERE state = 'pending'").await, 1);
    let typed = code.replace('-', "").to_lowercase();
    let done = browser.post("/device", &[("user_code", &typed), ("decision", "approve")]).await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(browser.post("/device", &[("user_code", code), ("decision", "approve")]).await.status, 404);

    let token = ask(&server, &device).await;
    assert_eq!(token.headers["cache-control"], "no-store");
    let token = token.expect(200);
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("bearer"), &json!(7_776_000)));
    assert_eq!(error(&server, &device).await, "invalid_grant");
    let key = token["access_token"].as_str().expect("a token");
    let me = server.with_key(key);
    assert_eq!(me.get("/cvms").await.status, 200);
    // The device acts for an administrator, and is none.
    assert_eq!(me.any("GET", "/holdfast/v1/nodes", ("", "")).await.status, 403);
    let list = server.at(V2026).get("/tokens").await.expect(200);
    let named = |t: &&Value| t["name"] == "Device login: phala-<cli>";
    assert!(list.as_array().expect("a list").iter().any(|t| named(&t)), "{list}");
    let tables = server.tables().await;
    for secret in [key, code, device["device_code"].as_str().expect("a code"), &code.replace('-', ""), PASSWORD] {
        assert!(!tables.contains(secret), "{secret} is in the database");
    }
    assert!(!tables.contains(browser.cookie.split_once('=').expect("a pair").1), "the session is in the database");
    for action in ["session.begin", "device.approve", "token.create"] {
        assert_eq!(server.audited("action", action).await, 1, "{action}");
    }
    // Whoever logs out is out, and so is nobody else.
    assert_eq!(me.post("/auth/logout", &Value::Null).await.status, 200);
    assert_eq!(me.get("/auth/authenticated").await.status, 401);
    assert_eq!(browser.get("/device").await.status, 200);
}

#[tokio::test]
async fn a_device_that_is_turned_away_or_late_gets_nothing() {
    let server = Server::start().await;
    let (denied, late, approved) = (begin(&server).await, begin(&server).await, begin(&server).await);
    let code = |device: &Value| device["user_code"].as_str().expect("a code").to_owned();
    let mut browser = Browser::new(&server);
    browser.sign_in().await;
    assert_eq!(browser.post("/device", &[("user_code", &code(&denied)), ("decision", "deny")]).await.status, 200);
    assert_eq!(error(&server, &denied).await, "access_denied");
    assert_eq!(browser.post("/device", &[("user_code", &code(&approved)), ("decision", "approve")]).await.status, 200);
    // An approval that is not fetched in time is none, and neither is one by somebody who has left.
    server.sql("UPDATE device_login SET expires_at = 1 + created_at").await;
    assert_eq!(error(&server, &approved).await, "expired_token");
    assert_eq!(error(&server, &late).await, "expired_token");
    assert_eq!(browser.get(&format!("/device?user_code={}", code(&late))).await.status, 404);
    assert_eq!(error(&server, &json!({ "device_code": "made up" })).await, "invalid_grant");
    let wrong = json!({ "device_code": late["device_code"], "grant_type": "password" });
    let wrong = server.without_key().post("/auth/device/token", &wrong).await.expect(400);
    assert_eq!(wrong["detail"]["error"], "unsupported_grant_type");
    assert_eq!(server.number("SELECT COUNT(*) FROM api_key WHERE kind = 'device'").await, 0);
}

#[tokio::test]
async fn no_other_page_can_sign_in_or_decide() {
    let server = Server::start().await;
    let device = begin(&server).await;
    let decision = [("user_code", device["user_code"].as_str().expect("a code")), ("decision", "approve")];
    let mut browser = Browser::new(&server);
    browser.sign_in().await;
    for site in ["cross-site", "same-site"] {
        browser.site = site;
        assert_eq!(browser.post("/device", &decision).await.status, 401, "{site}");
        assert_eq!(
            browser.post("/login", &[("username", "admin"), ("password", PASSWORD)]).await.status,
            403,
            "{site}"
        );
        assert_eq!(browser.post("/api/v1/tokens", &[("name", "x")]).await.status, 401, "{site}");
    }
    assert_eq!(error(&server, &device).await, "authorization_pending");
    // A session is for the cookie, and a key is not.
    let session = browser.cookie.split_once('=').expect("a pair").1.to_owned();
    assert_eq!(server.with_key(&session).get("/auth/me").await.status, 401);
    browser.site = "same-origin";
    assert_eq!(browser.get("/api/v1/auth/authenticated").await.status, 200);
    let key = browser.cookie.replace(&session, &server.key);
    let with_key = Request::get("/api/v1/auth/me").header("cookie", key).body(Body::empty()).expect("a request");
    assert_eq!(server.send(with_key).await.status, 401);
    // Its end is the end.
    let out = browser.post("/logout", &[]).await;
    assert!(out.headers["set-cookie"].to_str().expect("text").contains("Max-Age=0"));
    browser.cookie = format!("__Host-holdfast_session={session}");
    assert_eq!(browser.get("/api/v1/auth/authenticated").await.status, 401);
    assert_eq!(browser.get("/device").await.status, 303);
}

#[tokio::test]
async fn who_signs_in_with_a_key_gets_no_more_than_the_key() {
    let server = Server::start().await;
    let made = server.at(V2026).post("/tokens", &json!({ "name": "k", "scopes": ["read", "own"] })).await.expect(200);
    let mut browser = Browser::new(&server);
    assert_eq!(browser.post("/login", &[("api_key", "phak_wrong")]).await.status, 401);
    assert_eq!(browser.post("/login", &[("api_key", made["token"].as_str().expect("a token"))]).await.status, 303);
    let device = begin(&server).await;
    let decision = [("user_code", device["user_code"].as_str().expect("a code")), ("decision", "approve")];
    assert_eq!(browser.post("/device", &decision).await.status, 200);
    let token = ask(&server, &device).await.expect(200);
    let device = server.with_key(token["access_token"].as_str().expect("a token"));
    assert_eq!(device.get("/cvms").await.status, 200);
    assert_eq!(device.post_bytes("/cvms/x/stop", Vec::new()).await.status, 403);
    // The session ends with the key; what was let in on purpose stays.
    assert_eq!(browser.get("/api/v1/auth/authenticated").await.status, 200);
    assert_eq!(server.at(V2026).post(&format!("/tokens/{}/refresh", made["id"]), &json!({})).await.status, 200);
    assert_eq!(browser.get("/api/v1/auth/authenticated").await.status, 401);
    assert_eq!(device.get("/auth/authenticated").await.status, 200);
}

/// Codes cannot be tried out: what is typed is counted by where it comes from.
#[tokio::test]
async fn codes_cannot_be_guessed() {
    let server = Server::start().await;
    let mut browser = Browser::new(&server);
    browser.sign_in().await;
    let mut tries = 0;
    let refused = loop {
        let answer = browser.get("/device?user_code=BCDF-GHJK").await;
        tries += 1;
        if answer.status != 404 {
            break answer;
        }
    };
    assert_eq!(refused.status, 429);
    assert!((20..25).contains(&tries), "{tries}");
    assert!(refused.headers.contains_key("retry-after"));
}
