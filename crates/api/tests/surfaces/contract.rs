//! The contract of the Phala surface: every answer, of every route, in every version.

mod answers;
mod schemas;
mod table;
mod walk;

use axum::body::Body;
use axum::http::Request;

use crate::support::Answer;
use answers::Asked;

/// What an answer of the Phala surface depends on; `None` for other surfaces.
pub fn asked(request: &Request<Body>, oldest_key: &str) -> Option<Asked> {
    let path = request.uri().path();
    if !path.starts_with("/api/v1/") {
        return None;
    }
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some(Asked {
        method: request.method().to_string(),
        path: path.to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        version: header("x-phala-version"),
        oldest_key: header("x-api-key").is_some_and(|key| key == oldest_key),
    })
}

/// Fails the test whose answer is not what its contract says.
#[track_caller]
pub fn hold(asked: &Asked, answer: &Answer) {
    if let Err(wrong) = answers::check(asked, answer) {
        let text: String = answer.text().chars().take(2000).collect();
        panic!(
            "{} {}?{} in {:?}: {}: {wrong}\n{text}",
            asked.method, asked.path, asked.query, asked.version, answer.status
        );
    }
}

/// What is sent as `X-Phala-Version`, and what it is called.
const SENT: [(&str, Option<&str>); 7] = [
    ("2025-10-28", Some("2025-10-28")),
    ("2026-01-21", Some("2026-01-21")),
    ("2026-05-22", Some("2026-05-22")),
    ("2026-06-23", Some("2026-06-23")),
    ("none", None),
    ("LATEST", Some("LATEST")),
    ("newer", Some("2031-12-31")),
];

/// A walk on a thread of its own.
fn walked(version: Option<&'static str>) -> walk::Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(walk::walk(version))
}

#[test]
fn every_route_in_every_version() {
    let walks = SENT.map(|(_, version)| std::thread::spawn(move || walked(version)));
    let seen: Vec<_> = walks.into_iter().map(|walk| walk.join().expect("a whole walk")).collect();
    let names = SENT.map(|(name, _)| name);
    let coverage = table::coverage(&seen);
    let holes = table::holes(&coverage, &names);
    assert!(holes.is_empty(), "answers that no walk met:\n{}", holes.join("\n"));
    let page = table::page(&coverage, &names);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/coverage.md");
    if std::env::var_os("HOLDFAST_WRITE_COVERAGE").is_some() {
        std::fs::write(path, &page).expect("a written page");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == page, "docs/coverage.md is not current; it has to be:\n{page}");
}

/// Refusals of the pages that this server has no cause for: a CVM of another workspace is not found rather than forbidden,
/// and nothing is registered on a chain.
const NO_CAUSE: [u16; 5] = [403, 465, 466, 467, 468];

#[test]
fn what_the_pages_refuse_is_documented() {
    for known in answers::DOCUMENT.iter() {
        for method in known.methods.keys() {
            let route = format!("{method} {}", known.path);
            let mut missing = schemas::refused(&route);
            missing.retain(|status| !NO_CAUSE.contains(status) && !known.statuses(method).contains(status));
            if ["GET /api/v1/kms/phala/next_app_id", "POST /api/v1/tokens"].contains(&route.as_str()) {
                // This server always has its KMS, and a caller their workspace.
                missing.remove(&404);
            }
            assert!(missing.is_empty(), "{route}: the pages have {missing:?}");
        }
    }
}
