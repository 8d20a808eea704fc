//! Rate limits: none unless set; honest about what is left and when; each token's own; and failures held against addresses.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use holdfast_control::Settings;
use holdfast_control::rates::Rates;
use serde_json::{Value, json};

use crate::support::{Answer, Server, V2026, until};

async fn limited(reads: &str, mutations: &str, failures: &str) -> Server {
    let rate = |text: &str| text.parse().ok();
    let rates = Rates { reads: rate(reads), mutations: rate(mutations), failures: rate(failures) };
    Server::start_with(Settings { rates, ..Settings::default() }).await
}

fn number(answer: &Answer, header: &str) -> u64 {
    let value = answer.headers.get(header).unwrap_or_else(|| panic!("no {header}"));
    value.to_str().expect("text").parse().expect("a number")
}

/// A request as it comes from an address.
async fn from(server: &Server, address: &str, key: Option<&str>) -> Answer {
    let mut request = Request::builder().uri("/api/v1/auth/me");
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    let mut request = request.body(Body::empty()).expect("a request");
    let address: SocketAddr = address.parse().expect("an address");
    request.extensions_mut().insert(ConnectInfo(address));
    server.send(request).await
}

#[tokio::test]
async fn nothing_is_limited_unless_it_is_set() {
    let server = Server::start().await;
    for _ in 0..200 {
        let answer = server.at(V2026).get("/auth/me").await;
        assert!(answer.status == 200 && answer.headers.keys().all(|name| !name.as_str().starts_with("ratelimit")));
    }
    for _ in 0..50 {
        assert_eq!(from(&server, "192.0.2.1:1", Some("phak_wrong")).await.status, 401);
    }
}

#[tokio::test]
async fn a_token_is_told_what_is_left_and_when_to_come_again() {
    let server = limited("5/s", "", "").await;
    let mut left = Vec::new();
    for _ in 0..5 {
        let answer = server.at(V2026).get("/auth/me").await;
        assert_eq!((answer.status.as_u16(), number(&answer, "ratelimit-limit")), (200, 5));
        assert!(number(&answer, "ratelimit-reset") <= 1);
        left.push(number(&answer, "ratelimit-remaining"));
    }
    assert!(left.is_sorted_by(|a, b| a >= b) && left[0] == 4, "{left:?}");
    // A burst meets the limit; who waits as long as it is told is let through.
    let mut refused = server.at(V2026).get("/auth/me").await;
    until("the limit is met", async || {
        if refused.status != 429 {
            refused = server.at(V2026).get("/auth/me").await;
        }
        refused.status == 429
    })
    .await;
    assert_eq!((number(&refused, "ratelimit-limit"), number(&refused, "ratelimit-remaining")), (5, 0));
    let wait = number(&refused, "retry-after");
    assert_eq!(wait, 1, "one in a fifth of a second, in whole seconds");
    let body = refused.expect(429);
    assert_eq!(body["error_code"], "HF-0161", "{body}");
    assert!(body["message"].as_str().is_some_and(|text| text.contains("5 requests")), "{body}");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(server.at(V2026).get("/auth/me").await.status, 200);
}

#[tokio::test]
async fn reads_and_mutations_and_tokens_each_have_their_own() {
    let server = limited("3/h", "2/h", "").await;
    let key = server.stranger("user").await;
    let read = async |key: &str| server.with_key(key).get("/auth/me").await.status.as_u16();
    let write =
        async |key: &str| server.with_key(key).post_bytes("/cvms/nobody/stop", Vec::new()).await.status.as_u16();
    let admin = server.key.clone();
    for _ in 0..3 {
        assert_eq!(read(&admin).await, 200);
    }
    assert_eq!((read(&admin).await, read(&admin).await), (429, 429));
    assert_eq!((write(&admin).await, write(&admin).await, write(&admin).await), (404, 404, 429));
    assert_eq!((read(&key).await, write(&key).await), (200, 404));
    // The same token counts as the same however it is sent, and on every surface.
    let bearer = Request::get("/v1/operations").header("authorization", format!("Bearer {admin}"));
    let refused = server.send(bearer.body(Body::empty()).expect("a request")).await;
    assert_eq!((refused.status.as_u16(), refused.json()["code"].clone()), (429, json!("HF-0161")));
    assert!(refused.headers.contains_key("retry-after"));
    let ours = Request::get("/holdfast/v1/operations").header("x-api-key", &admin);
    let refused = server.send(ours.body(Body::empty()).expect("a request")).await.expect(429);
    assert_eq!(refused["error"]["code"], "HF-0161");
    // A refusal for the rate is in no audit log: it must cost nothing. The others are there.
    let rows = server.number("SELECT COUNT(*) FROM audit_log WHERE status_code = 429").await;
    assert_eq!((rows, server.number("SELECT COUNT(*) FROM audit_log WHERE status_code = 404").await), (0, 3));
    // What needs no token has no limit of one.
    let open = server.open(Request::get("/readyz").body(Body::empty()).expect("a request")).await;
    assert_eq!(open.status(), 200);
}

#[tokio::test]
async fn an_address_that_guesses_is_held_up_and_its_neighbours_are_not() {
    let server = limited("", "", "3/h").await;
    let good = server.key.clone();
    assert_eq!(from(&server, "192.0.2.1:1", Some(&good)).await.status, 200);
    for guess in ["phak_a", "phak_b", "phak_c"] {
        assert_eq!(from(&server, "192.0.2.1:2", Some(guess)).await.status, 401);
    }
    let refused = from(&server, "192.0.2.1:3", Some("phak_d")).await;
    assert!((1..=1200).contains(&number(&refused, "retry-after")));
    let body: Value = refused.expect(429);
    assert!(body["message"].as_str().is_some_and(|text| text.contains("from this address")), "{body}");
    // From now on nothing is even looked up, whether or not it has a key ...
    assert_eq!(from(&server, "192.0.2.1:4", Some("phak_e")).await.status, 429);
    assert_eq!(from(&server, "192.0.2.1:4", None).await.status, 429);
    let stranger = server.stranger("user").await;
    assert_eq!(from(&server, "192.0.2.1:5", Some(&stranger)).await.status, 429, "a guess that is right is not told so");
    // ... but a key that was good goes on, and so does every other address.
    assert_eq!(from(&server, "192.0.2.1:6", Some(&good)).await.status, 200);
    assert_eq!(from(&server, "192.0.2.2:1", Some(&stranger)).await.status, 200);
    assert_eq!(from(&server, "192.0.2.2:1", Some("phak_e")).await.status, 401);
    // Known by now, it is good from everywhere; once it is revoked it is a guess like any other.
    assert_eq!(from(&server, "192.0.2.1:7", Some(&stranger)).await.status, 200);
    server.sql("UPDATE api_key SET revoked_at = 1 WHERE prefix = 'phak_str'").await;
    assert_eq!(from(&server, "192.0.2.1:8", Some(&stranger)).await.status, 429);
    // Nobody looks it up there any more, or it would be found good again.
    server.sql("UPDATE api_key SET revoked_at = NULL WHERE prefix = 'phak_str'").await;
    assert_eq!(from(&server, "192.0.2.1:9", Some(&stranger)).await.status, 429);
    assert_eq!(from(&server, "192.0.2.2:9", Some(&stranger)).await.status, 200);
}
