//! Following operations: long poll and event streams.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt;
use serde_json::Value;

use crate::support::{Server, V2026};

/// An open event stream.
struct Stream {
    body: BodyDataStream,
    text: String,
}

impl Stream {
    async fn open(server: &Server, key: &str, path: &str, last: &str) -> Self {
        let mut request = server.with_key(key).request("GET", "/").uri(path);
        if !last.is_empty() {
            request = request.header("last-event-id", last);
        }
        let response = server.open(request.body(Body::empty()).expect("a request")).await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// The next event, or `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let frame: String = self.text.drain(..end + 2).collect();
                let line = |name: &str| frame.lines().find_map(|l| l.strip_prefix(name)).map(|t| t.trim().to_owned());
                let Some(data) = line("data:") else { continue };
                let data: Value = serde_json::from_str(&data).expect("JSON");
                assert_eq!(line("id:"), Some(data["position"].to_string()));
                return Some(data);
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.body.next()).await.expect("in time");
            self.text.push_str(&String::from_utf8_lossy(&chunk?.expect("a chunk")));
        }
    }
}

async fn newest(server: &Server) -> Value {
    let page = server.at(V2026).any("GET", "/holdfast/v1/operations?limit=1", ("", "")).await.expect(200);
    page["items"][0].clone()
}

#[tokio::test]
async fn the_events_of_an_operation_from_any_place_to_its_end() {
    let server = Server::start().await;
    server.deploy_running("my-app").await;
    let operation = newest(&server).await;
    let path = format!("/holdfast/v1/operations/{}/events", operation["id"].as_str().expect("an id"));
    let mut all = Vec::new();
    let mut stream = Stream::open(&server, &server.key, &path, "").await;
    while let Some(event) = stream.next().await {
        all.push(event);
    }
    let listed = operation["events"].as_array().expect("events");
    assert_eq!(all.len(), listed.len());
    for (streamed, listed) in all.iter().zip(listed) {
        assert_eq!((&streamed["event_type"], &streamed["seq"]), (&listed["event_type"], &listed["seq"]));
    }
    for (seen, event) in all.iter().enumerate() {
        let mut stream = Stream::open(&server, &server.key, &path, &event["position"].to_string()).await;
        let mut rest = Vec::new();
        while let Some(event) = stream.next().await {
            rest.push(event);
        }
        assert_eq!(rest, all[seen + 1..]);
    }
    let bad = server.at(V2026).any("GET", &path, ("last-event-id", "yesterday")).await;
    assert_eq!(bad.status, 422);
}

#[tokio::test]
async fn a_live_stream_misses_nothing_and_resumes_without_repeat() {
    let server = Server::start().await;
    let stranger = server.stranger("user").await;
    let path = "/holdfast/v1/operations/stream";
    let mut live = Stream::open(&server, &server.key, path, "").await;
    let mut foreign = Stream::open(&server, &stranger, path, "0").await;
    let (mut seen, mut last) = (Vec::new(), 0);
    server.deploy_running("my-app").await;
    for round in 0..3 {
        server.at(V2026).post_bytes("/cvms/my-app/restart", Vec::new()).await.expect(200);
        server.until_status("my-app", "running").await;
        while last < newest(&server).await["events"].as_array().map_or(0, Vec::len) {
            let event = live.next().await.expect("the stream goes on");
            let over = event["event_type"] == "instance.restart.end";
            seen.push(event["position"].as_i64().expect("a position"));
            last = if over { usize::MAX } else { 0 };
        }
        last = 0;
        if round == 1 {
            // Comes back with what it has seen.
            let position = seen.last().expect("events").to_string();
            live = Stream::open(&server, &server.key, path, &position).await;
        }
    }
    let expected: Vec<i64> = (1..=seen.len() as i64).collect();
    assert_eq!(seen, expected, "every position once, in order");
    let quiet = tokio::time::timeout(Duration::from_millis(100), foreign.next()).await;
    assert!(quiet.is_err(), "another workspace sees nothing: {quiet:?}");
}

#[tokio::test]
async fn a_wait_ends_with_news_or_with_its_time() {
    let server = Server::start().await;
    server.held.store(true, Ordering::Relaxed);
    server.deploy("my-app").await;
    crate::support::until("it waits for the node", async || newest(&server).await["steps"][2]["state"] == "running")
        .await;
    let operation = newest(&server).await;
    let path = format!("/holdfast/v1/operations/{}/wait", operation["id"].as_str().expect("an id"));
    let silent = server.at(V2026).any("GET", &format!("{path}?timeout=0"), ("", "")).await;
    assert_eq!(silent.headers["retry-after"], "1");
    assert_eq!(silent.json()["status"], "running");

    let behind = server.at(V2026).any("GET", &format!("{path}?timeout=20&after=1"), ("", "")).await;
    assert_eq!(behind.json()["id"], operation["id"], "what the caller has not seen is news at once");
    let release = async {
        tokio::task::yield_now().await;
        server.held.store(false, Ordering::Relaxed);
    };
    let ask = server.at(V2026);
    let wait = format!("{path}?timeout=20");
    let (news, ()) = tokio::join!(ask.any("GET", &wait, ("", "")), release);
    let events = news.json()["events"].as_array().map_or(0, Vec::len);
    assert!(events > operation["events"].as_array().map_or(0, Vec::len));
    server.until_status("my-app", "running").await;
    let over = server.at(V2026).any("GET", &format!("{path}?timeout=20"), ("", "")).await;
    assert_eq!(over.json()["status"], "done");
    assert!(over.headers.get("retry-after").is_none());
    assert_eq!(server.at(V2026).any("GET", &format!("{path}?timeout=301"), ("", "")).await.status, 422);
}
