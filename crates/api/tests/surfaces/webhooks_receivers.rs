//! Receivers of webhooks, good and bad: what is sent to whom, in which order, and what becomes of it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_control::webhooks::Options;
use holdfast_control::webhooks::dispatch;
use holdfast_control::webhooks::guard::{Guard, Looking, Lookup, SystemLookup};
use holdfast_control::webhooks::send::signature;
use holdfast_control::{Clock, Settings, SystemClock};
use holdfast_model::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::support::{Server, V2026, until};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Got {
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    pub fn event(&self) -> String {
        self.headers["x-webhook-event"].clone()
    }

    pub fn is_signed_with(&self, secret: &str) -> bool {
        let timestamp: i64 = self.headers["x-webhook-timestamp"].parse().expect("a time");
        self.headers["x-webhook-signature"] == signature(secret, timestamp, &self.body)
    }
}

/// What answers each request; the first word of its path says how.
#[derive(Default)]
pub struct Receiver {
    pub got: Mutex<Vec<Got>>,
    /// Requests to paths with this in their body are answered 500.
    pub refuse: Mutex<Option<String>>,
    /// Only what is signed with this is taken, the rest is answered 401.
    pub believes: Mutex<Option<String>>,
    pub connections: AtomicUsize,
    /// Those that hang answer what has this in its body.
    pub awake: Mutex<Option<String>>,
}

impl Receiver {
    /// Listens at this address, at a free port.
    pub async fn start(address: &str) -> (Arc<Self>, SocketAddr) {
        Self::start_as(address, None).await
    }

    /// The same, over TLS if this says how.
    pub async fn start_as(address: &str, tls: Option<TlsAcceptor>) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let at = listener.local_addr().expect("an address");
        let receiver = Arc::new(Self::default());
        let shared = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (receiver, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => receiver.serve(tls.accept(stream).await.ok()?).await,
                        None => receiver.serve(stream).await,
                    }
                });
            }
        });
        (receiver, at)
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite) -> Option<()> {
        let (read, mut write) = tokio::io::split(stream);
        let mut read = BufReader::new(read);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if read.read_line(&mut line).await.ok()? == 0 {
                    return None;
                }
                match line.trim_end() {
                    "" => break,
                    text => lines.push(text.to_owned()),
                }
            }
            let path = lines[0].split(' ').nth(1)?.to_owned();
            let headers: HashMap<String, String> = lines[1..]
                .iter()
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect();
            let mut body = vec![0; headers.get("content-length").map_or(0, |text| text.parse().expect("a length"))];
            read.read_exact(&mut body).await.ok()?;
            let got = Got { path, headers, body: String::from_utf8(body).expect("text") };
            let (answer, awake) = (self.answer(&got), self.awake.lock().expect("no panic").clone());
            let hangs = !awake.is_some_and(|text| got.body.contains(&text));
            let kind = got.path.split('/').nth(1).unwrap_or_default().to_owned();
            self.got.lock().expect("no panic").push(got);
            match kind.as_str() {
                "hang" if hangs => std::future::pending().await,
                "drop" => return None,
                "drip" => {
                    for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".iter() {
                        write.write_all(&[*byte]).await.ok()?;
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                "flood" => {
                    write.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await.ok()?;
                    while write.write_all(&[b'x'; 4096]).await.is_ok() {}
                    return None;
                }
                _ => write.write_all(answer.as_bytes()).await.ok()?,
            }
            if kind == "once" {
                return None;
            }
        }
    }

    fn answer(&self, got: &Got) -> String {
        let refuse = self.refuse.lock().expect("no panic").clone();
        let believes = self.believes.lock().expect("no panic").clone();
        let head = match got.path.split('/').nth(1).unwrap_or_default() {
            _ if refuse.is_some_and(|text| got.body.contains(&text)) => "500 Sorry",
            _ if believes.is_some_and(|secret| !got.is_signed_with(&secret)) => "401 Who",
            "error" => "500 Sorry",
            "moved" => "302 Elsewhere\r\nlocation: /ok/elsewhere",
            "once" => "200 OK\r\nconnection: close",
            _ => "200 OK",
        };
        format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n")
    }

    /// What was sent to a path, in the order of its arrival.
    pub fn at(&self, path: &str) -> Vec<Got> {
        self.got.lock().expect("no panic").iter().filter(|got| got.path == path).cloned().collect()
    }
}

/// The host's clock, put forward.
#[derive(Default)]
pub struct Ahead(AtomicI64);

impl Ahead {
    pub fn by(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().micros() + self.0.load(Ordering::SeqCst))
    }
}

/// A server that may send to these addresses, and to receivers of these authorities, but does not yet; and its clock.
async fn silent(network: &str, authorities: Vec<reqwest::Certificate>) -> (Server, Arc<Ahead>) {
    let clock = Arc::new(Ahead::default());
    let guard = Guard { networks: vec![network.parse().expect("a range")], http: true };
    let webhooks = Options { guard, authorities, per_workspace: 2000 };
    // The test's node reports only what changes.
    let node_patience = Duration::from_secs(30 * 86_400);
    let settings = Settings { webhooks, node_patience, ..Settings::default() };
    (Server::start_at(settings, clock.clone()).await, clock)
}

/// A server that sends, and its clock.
pub async fn delivering(
    lookup: Arc<dyn Lookup>,
    network: &str,
    authorities: Vec<reqwest::Certificate>,
) -> (Server, Arc<Ahead>) {
    let (server, clock) = silent(network, authorities).await;
    tokio::spawn(dispatch::run_with(server.control.clone(), lookup, CancellationToken::new()));
    (server, clock)
}

pub async fn delivering_here() -> (Server, Arc<Ahead>) {
    delivering(Arc::new(SystemLookup), "127.0.0.0/8", Vec::new()).await
}

/// Makes a webhook of all events; answers its id and secret.
pub async fn webhook(server: &Server, url: &str, events: &[&str]) -> (String, String) {
    let made = server.at(V2026).post("/workspace/webhooks", &json!({ "url": url, "events": events })).await.expect(201);
    (made["id"].as_str().expect("an id").to_owned(), made["secret"].as_str().expect("a secret").to_owned())
}

const LIFE: [&str; 4] = ["cvm.created", "cvm.started", "cvm.stopped", "cvm.deleted"];

pub async fn deliveries(server: &Server, id: &str) -> Vec<Value> {
    let list = server.at(V2026).get(&format!("/workspace/webhooks/{id}/deliveries")).await.expect(200);
    list.as_array().expect("a list").clone()
}

#[tokio::test]
async fn a_life_is_told_in_order_and_signed() {
    let (server, _) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    let (id, secret) = webhook(&server, &format!("http://{at}/ok"), &LIFE).await;
    webhook(&server, &format!("http://{at}/ok/operations"), &["operation.accepted", "operation.succeeded"]).await;
    let vm = server.deploy_running("told-app").await;
    server.at(V2026).post("/cvms/told-app/stop", &Value::Null).await.expect(200);
    server.until_status("told-app", "stopped").await;
    assert_eq!(server.at(V2026).delete("/cvms/told-app").await.status, 204);
    until("all is told", async || receiver.at("/ok").len() == 4 && receiver.at("/ok/operations").len() == 6).await;
    let all = receiver.at("/ok");
    assert_eq!(all.iter().map(Got::event).collect::<Vec<_>>(), LIFE);
    let statuses = ["creating", "running", "stopped", "deleted"];
    for (got, status) in all.iter().zip(statuses) {
        assert!(got.is_signed_with(&secret), "{got:?}");
        assert_eq!(got.headers["user-agent"], "PhalaCloud-Webhook/1.0");
        assert_eq!(got.headers["content-type"], "application/json");
        let body = got.json();
        assert_eq!(body["id"], got.headers["x-webhook-id"].as_str());
        assert_eq!(body["event"], got.event());
        assert_eq!(body["version"], "1");
        assert_eq!(body["workspace"], json!({ "id": "default", "name": "default" }));
        let data = json!({ "cvm_id": vm["vm_uuid"], "cvm_name": "told-app", "app_id": vm["app_id"], "status": status });
        assert_eq!(body["data"], data);
    }
    let operation = receiver.at("/ok/operations")[1].json();
    assert_eq!(operation["event"], "operation.succeeded");
    assert_eq!(operation["data"]["operation_type"], "create");
    until("all is written", async || deliveries(&server, &id).await.len() == 4).await;
    let newest = &deliveries(&server, &id).await[0];
    assert_eq!((&newest["event_type"], &newest["status"]), (&json!("cvm.deleted"), &json!("success")), "{newest}");
    assert_eq!((&newest["attempts"], &newest["response_status"]), (&json!(1), &json!(200)), "{newest}");
    let stats = server.at(V2026).get(&format!("/workspace/webhooks/{id}/stats")).await.expect(200);
    assert_eq!((&stats["total"], &stats["success_count"], &stats["success_rate"]), (&json!(4), &json!(4), &json!(1.0)));
}

#[tokio::test]
async fn bad_receivers() {
    let (server, _) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    // Nobody listens where somebody did.
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let cases = [
        (format!("http://{at}/hang"), "No answer within 10 s.", 0),
        (format!("http://{at}/drop"), "The connection ended before there was an answer.", 0),
        (format!("http://{at}/error"), "Answered with 500.", 500),
        (format!("http://{at}/moved"), "Redirected with 302; redirects are not followed.", 302),
        (format!("http://{at}/drip"), "No answer within 10 s.", 0),
        (format!("http://{at}/flood"), "", 200),
        (format!("http://{closed}/"), "No connection could be made.", 0),
    ];
    let mut ids = Vec::new();
    for (url, ..) in &cases {
        let (id, _) = webhook(&server, url, &["cvm.created"]).await;
        let sent = server.at(V2026).post(&format!("/workspace/webhooks/{id}/test"), &Value::Null).await.expect(200);
        assert_eq!((&sent["event_type"], &sent["status"]), (&json!("webhook.test"), &json!("pending")), "{sent}");
        ids.push((id, sent["event_id"].clone()));
    }
    for ((id, event), (url, error, status)) in ids.iter().zip(&cases) {
        until(url, async || deliveries(&server, id).await[0]["attempts"] == 1).await;
        let told = &deliveries(&server, id).await[0];
        assert_eq!((&told["event_id"], &told["error_message"]), (event, &json!(error)), "{url}: {told}");
        assert_eq!(told["response_status"], *status, "{url}: {told}");
        assert_eq!(told["status"], if error.is_empty() { "success" } else { "pending" }, "{url}: {told}");
    }
    assert!(receiver.at("/ok/elsewhere").is_empty(), "a redirect was followed");
}

/// Hands out one address first and another one ever after.
struct Turncoat {
    first: IpAddr,
    then: IpAddr,
    asked: AtomicUsize,
}

impl Lookup for Turncoat {
    fn lookup(&self, _: String) -> Looking {
        let address = if self.asked.fetch_add(1, Ordering::SeqCst) == 0 { self.first } else { self.then };
        Box::pin(async move { Ok(vec![address]) })
    }
}

#[tokio::test]
async fn a_name_that_turns_private_is_not_followed() {
    let (public, private) = ("127.0.0.1", "127.0.0.2");
    let (first, at) = Receiver::start("127.0.0.1:0").await;
    let listener = TcpListener::bind((private, at.port())).await.expect("the same port");
    let reached = Arc::new(AtomicBool::new(false));
    let seen = reached.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            seen.store(true, Ordering::SeqCst);
        }
    });
    let parse = |text: &str| text.parse().expect("an address");
    let lookup = Turncoat { first: parse(public), then: parse(private), asked: AtomicUsize::new(0) };
    let lookup = Arc::new(lookup);
    let (server, _) = delivering(lookup.clone(), "127.0.0.1/32", Vec::new()).await;
    let (id, _) = webhook(&server, &format!("http://turncoat.example:{}/once", at.port()), &["cvm.created"]).await;
    let path = format!("/workspace/webhooks/{id}/test");
    server.at(V2026).post(&path, &Value::Null).await.expect(200);
    until("the first is delivered", async || first.at("/once").len() == 1).await;
    server.at(V2026).post(&path, &Value::Null).await.expect(200);
    until("the second is tried", async || deliveries(&server, &id).await[0]["attempts"] == 1).await;
    let told = &deliveries(&server, &id).await[0];
    assert_eq!(told["error_message"], "The URL's name leads to an address that is not allowed.");
    assert!(lookup.asked.load(Ordering::SeqCst) >= 2 && !reached.load(Ordering::SeqCst));
}

/// One CVM's event is refused: its later ones wait behind it, another CVM's do not.
#[tokio::test]
async fn order_is_kept_per_cvm_over_retries() {
    let (server, clock) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    let (id, _) = webhook(&server, &format!("http://{at}/ok"), &LIFE).await;
    *receiver.refuse.lock().expect("no panic") = Some("sick-app".to_owned());
    server.deploy_running("sick-app").await;
    server.deploy_running("well-app").await;
    server.at(V2026).post("/cvms/sick-app/stop", &Value::Null).await.expect(200);
    server.until_status("sick-app", "stopped").await;
    let of = |name: &str| -> Vec<(String, String)> {
        let got = receiver.at("/ok").into_iter().filter(|got| got.json()["data"]["cvm_name"] == name);
        got.map(|got| (got.event(), got.headers["x-webhook-id"].clone())).collect()
    };
    until("the other one's are delivered", async || of("well-app").len() == 2).await;
    until("all is written", async || deliveries(&server, &id).await.len() == 5).await;
    assert_eq!(of("sick-app").len(), 1, "what comes later was not held back");
    // The retries: after a minute, and after ten more.
    clock.by(61);
    until("it is tried again", async || of("sick-app").len() == 2).await;
    until("that is written", async || deliveries(&server, &id).await.iter().any(|one| one["attempts"] == 2)).await;
    *receiver.refuse.lock().expect("no panic") = None;
    clock.by(601);
    until("all of it is delivered", async || of("sick-app").len() == 5).await;
    let events = of("sick-app");
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["cvm.created", "cvm.created", "cvm.created", "cvm.started", "cvm.stopped"]);
    assert!(events[0].1 == events[1].1 && events[1].1 == events[2].1, "another id: {events:?}");
    until("all is over", async || deliveries(&server, &id).await.iter().all(|one| one["status"] == "success")).await;
}

#[tokio::test]
async fn an_endpoint_that_fails_for_five_days_is_disabled() {
    let (server, clock) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    let (id, _) = webhook(&server, &format!("http://{at}/error"), &["cvm.created"]).await;
    server.deploy("some-app").await;
    for (attempt, wait) in [(1, 61), (2, 601), (3, 3601), (4, 0)] {
        let path = format!("attempt {attempt}");
        until(&path, async || deliveries(&server, &id).await.first().is_some_and(|one| one["attempts"] == attempt))
            .await;
        clock.by(wait);
    }
    assert_eq!(deliveries(&server, &id).await[0]["status"], "failed");
    assert_eq!(receiver.at("/error").len(), 4);
    let enabled = async || server.at(V2026).get(&format!("/workspace/webhooks/{id}")).await.expect(200);
    assert_eq!(enabled().await["enabled"], true);
    clock.by(5 * 86_400);
    server.at(V2026).post(&format!("/workspace/webhooks/{id}/test"), &Value::Null).await.expect(200);
    until("it is disabled", async || enabled().await["enabled"] == false).await;
    let reason = enabled().await["disabled_reason"].as_str().expect("a reason").to_owned();
    assert!(reason.starts_with("Every delivery failed since 20"), "{reason}");
    let log = server.at(V2026).any("GET", "/holdfast/v1/audit-logs?action=webhook.disable", ("", "")).await.expect(200);
    assert_eq!(log["items"].as_array().map(Vec::len), Some(1), "{log}");
    let refused = server.at(V2026).post(&format!("/workspace/webhooks/{id}/test"), &Value::Null).await.expect(409);
    assert_eq!(refused["error_code"], "HF-0173");
    let path = format!("/workspace/webhooks/{id}");
    let on =
        server.at(V2026).put(&path, &json!({ "enabled": true, "url": format!("http://{at}/ok") })).await.expect(200);
    assert_eq!((&on["enabled"], &on["disabled_reason"]), (&json!(true), &Value::Null));
    server.at(V2026).post(&format!("{path}/test"), &Value::Null).await.expect(200);
    until("it is told again", async || receiver.at("/ok").len() == 1).await;
}

/// Whichever of the two secrets the receiver knows, nothing is lost.
#[tokio::test]
async fn two_secrets_are_valid_for_a_day() {
    let (server, clock) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    let (id, old) = webhook(&server, &format!("http://{at}/ok"), &["cvm.created"]).await;
    let rotated =
        server.at(V2026).post(&format!("/workspace/webhooks/{id}/rotate-secret"), &Value::Null).await.expect(200);
    let new = rotated["secret"].as_str().expect("a secret").to_owned();
    assert!(new != old && rotated["previous_secret_valid_until"].is_string(), "{rotated}");
    for secret in [&old, &new] {
        *receiver.believes.lock().expect("no panic") = Some(secret.clone());
        server.at(V2026).post(&format!("/workspace/webhooks/{id}/test"), &Value::Null).await.expect(200);
        until("it is delivered", async || {
            deliveries(&server, &id).await.iter().all(|one| one["status"] == "success" && one["attempts"] == 1)
        })
        .await;
        assert!(receiver.at("/ok").last().expect("a request").is_signed_with(secret));
    }
    // After a day only the new one counts.
    clock.by(86_401);
    *receiver.believes.lock().expect("no panic") = Some(old);
    server.at(V2026).post(&format!("/workspace/webhooks/{id}/test"), &Value::Null).await.expect(200);
    until("it is refused", async || deliveries(&server, &id).await[0]["response_status"] == 401).await;
    let last = receiver.at("/ok").pop().expect("a request");
    assert!(last.is_signed_with(&new) && !last.headers.contains_key("x-webhook-signature-other"));
}

/// Both ends of each connection are in this process.
fn many_files() {
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).expect("as many files as the host allows");
}

/// So many endpoints, of which each tenth is there to answer; what the others answer is up to `awake`.
async fn crowd(server: &Server, at: SocketAddr, count: usize, each: impl AsyncFn(&str)) {
    for number in 0..count {
        let kind = if number % 10 == 0 { "ok" } else { "hang" };
        each(&webhook(server, &format!("http://{at}/{kind}/{number}"), &["cvm.created"]).await.0).await;
    }
}

/// Waits until so many requests came to paths that begin so, with one of these names in their bodies.
async fn told(receiver: &Receiver, names: &[&str], kind: &str, count: usize) {
    let served = |got: &&Got| got.path.starts_with(kind) && names.iter().any(|name| got.body.contains(name));
    let all = async || receiver.got.lock().expect("no panic").iter().filter(served).count() >= count;
    until("all that answer are told", all).await;
}

/// Of 1,000 endpoints 900 hang: the other 100 are told within 2 s, beyond what this machine needs when nobody hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_hang_do_not_delay_the_others() {
    many_files();
    let (server, _) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    crowd(&server, at, 1000, async |_| ()).await;
    *receiver.awake.lock().expect("no panic") = Some("first-app".to_owned());
    let began = tokio::time::Instant::now();
    server.deploy("first-app").await;
    told(&receiver, &["first-app"], "/", 1000).await;
    let nobody_hangs = began.elapsed();
    for name in ["second-app", "third-app", "fourth-app"] {
        let began = tokio::time::Instant::now();
        server.deploy(name).await;
        told(&receiver, &[name], "/ok/", 100).await;
        let took = began.elapsed();
        println!("{name}: {took:?}; when nobody hangs {nobody_hangs:?}");
        assert!(took < Duration::from_secs(2) + nobody_hangs, "{name}: {took:?}; when nobody hangs {nobody_hangs:?}");
    }
}

/// Endpoints that answered well are given many events at once, and stop answering: there are more attempts that will hang than
/// there are places before it can be known of any. Those who still answer do not wait until the first of them gives up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_begin_to_hang_do_not_take_all_places() {
    many_files();
    let (server, _) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    *receiver.awake.lock().expect("no panic") = Some("webhook.test".to_owned());
    // One after the other, so that each is answered as quickly as this machine can.
    let greet = async |id: &str| {
        server.at(V2026).post(&format!("/workspace/webhooks/{id}/test"), &Value::Null).await.expect(200);
    };
    crowd(&server, at, 600, greet).await;
    told(&receiver, &["webhook.test"], "/", 600).await;
    let names = ["first-app", "second-app", "third-app", "fourth-app"];
    let began = tokio::time::Instant::now();
    futures_util::future::join_all(names.map(|name| server.deploy(name))).await;
    let deployed = began.elapsed();
    told(&receiver, &names, "/ok/", 60 * names.len()).await;
    println!("deployed after {deployed:?}, all told after {:?}", began.elapsed());
    assert_eq!(
        server.number("SELECT COUNT(*) FROM webhook_delivery WHERE response_status = 0 AND attempts > 0").await,
        0
    );
}

#[tokio::test]
async fn a_resend_is_the_same_event() {
    let (server, _) = delivering_here().await;
    let (receiver, at) = Receiver::start("127.0.0.1:0").await;
    let (id, _) = webhook(&server, &format!("http://{at}/ok"), &["cvm.created"]).await;
    server.deploy("some-app").await;
    until("it is told", async || !deliveries(&server, &id).await.is_empty()).await;
    let event = deliveries(&server, &id).await[0]["event_id"].as_str().expect("an id").to_owned();
    let path = format!("/workspace/webhooks/{id}/deliveries/{event}/resend");
    let again = server.at(V2026).post(&path, &Value::Null).await.expect(200);
    assert_eq!(again["original_event_id"], event.as_str());
    assert_ne!(again["event_id"], event.as_str());
    until("it is told again", async || receiver.at("/ok").len() == 2).await;
    let got = receiver.at("/ok");
    assert_eq!(got[0].body, got[1].body);
    assert_eq!(got[0].headers["x-webhook-id"], got[1].headers["x-webhook-id"]);
    assert_eq!(got[1].event(), "cvm.created");
}
