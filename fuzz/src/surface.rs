//! A server in this process: its real router over a real store, and nobody else.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request};
use holdfast_api::App;
use holdfast_control::{Control, Settings, SystemClock, setup};
use holdfast_store::Store;
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt;

pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
});

static SERVER: LazyLock<Server> = LazyLock::new(|| RUNTIME.block_on(start()));

/// A cursor into the audit log.
static CURSOR: LazyLock<String> = LazyLock::new(|| {
    for name in ["a", "b", "c"] {
        let body = serde_json::json!({ "name": name }).to_string();
        let (status, answer) = send("POST", "/holdfast/v1/node-tokens", None, body);
        assert!((200..300).contains(&status), "{status}: {answer}");
    }
    let (_, page) = get("/holdfast/v1/audit-logs?limit=1", None);
    page["next_cursor"].as_str().unwrap_or_else(|| panic!("no second page: {page}")).to_owned()
});

struct Server {
    router: Router,
    key: String,
    // Removed with the process at the latest: the system's temporary folder.
    _folder: tempfile::TempDir,
}

async fn start() -> Server {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).await.expect("a store");
    let master = setup::master_key(&folder.path().join("master.key"), true).expect("a master key");
    let keys = setup::keys(&store, &master).await.expect("secrets");
    let file = folder.path().join("admin.key");
    setup::first_admin(&store, &SystemClock, &file).await.expect("an administrator");
    let control = Control::new(store, keys, Settings::default(), Arc::new(SystemClock));
    let router = holdfast_api::router(App { control, needs_node: false });
    let key = std::fs::read_to_string(file).expect("the key file").trim().to_owned();
    Server { router, key, _folder: folder }
}

pub fn cursor() -> String {
    CURSOR.clone()
}

/// As one part of a path or of a query: what is no letter or digit is escaped.
pub fn in_path(data: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(*byte).to_string(),
        other => format!("%{other:02X}"),
    };
    // No server need read longer ones.
    data.iter().take(4000).map(one).collect()
}

pub fn get(path: &str, version: Option<HeaderValue>) -> (u16, Value) {
    send("GET", path, version, String::new())
}

/// The status, and the body if it is JSON. A fault of the server is a panic.
fn send(method: &str, path: &str, version: Option<HeaderValue>, body: String) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path).header("x-api-key", &SERVER.key);
    request = request.header("content-type", "application/json");
    if let Some(version) = version {
        request = request.header("x-phala-version", version);
    }
    let request = request.body(Body::from(body)).expect("the path is escaped");
    RUNTIME.block_on(async {
        let answer = SERVER.router.clone().oneshot(request).await.expect("the router answers");
        let status = answer.status().as_u16();
        let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.expect("a body");
        assert!(status < 500, "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    })
}
