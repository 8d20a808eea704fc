//! What is asked of every answer that any test of this crate gets: its route authorized the caller, and a change left an
//! audit row.
//!
//! The one rule: nobody has to think of it. `Server::send` attaches the witness and calls [`hold`].

use axum::body::Body;
use axum::http::Request;
use holdfast_api::witness::Witness;

use super::table::{self, Row};
use crate::support::{Answer, Server};

/// A request that is on its way.
pub struct Watched {
    row: &'static Row,
    path: String,
    /// A rehearsal changes nothing.
    dry_run: bool,
    /// It has an idempotency key.
    keyed: bool,
    witness: Witness,
}

/// Attaches a witness. `None` for what no document has.
pub fn watch(request: &mut Request<Body>) -> Option<Watched> {
    let row = table::find(request.method().as_str(), request.uri().path())?;
    let witness = Witness::default();
    request.extensions_mut().insert(witness.clone());
    let query = request.uri().query().unwrap_or_default();
    Some(Watched {
        row,
        path: request.uri().path().to_owned(),
        dry_run: query.contains("dry_run=true"),
        keyed: request.headers().contains_key("idempotency-key"),
        witness,
    })
}

/// Fails the test whose route forgot to ask who is calling, or left no trace.
pub async fn hold(server: &Server, watched: &Watched, answer: &Answer) {
    let Watched { row, path, witness, .. } = watched;
    let (status, replayed) = (answer.status.as_u16(), answer.headers.contains_key("idempotency-replayed"));
    if replayed {
        return;
    }
    if let Some(action) = row.action {
        let asked = witness.asked();
        // What is refused with these was refused for what it is, whoever sent it, perhaps before the handler ran.
        let said_without = matches!(status, 400 | 405 | 408 | 413 | 415 | 422 | 429)
            // The layer of idempotency keys knows by itself that a secret was shown once.
            || (status == 409 && watched.keyed);
        let due: &[_] = if status < 400 { &[(action, true)] } else { &[(action, true), (action, false)] };
        let right = asked.len() == 1 && due.contains(&asked[0]);
        assert!(
            right || (asked.is_empty() && said_without),
            "{} {path}: answered {status}, and asked for {asked:?} where its row has {action:?}",
            row.method
        );
    }
    if row.mutates() && (200..300).contains(&status) && !watched.dry_run && row.quiet.is_none() {
        let request = answer.headers["x-request-id"].to_str().expect("an id");
        let mut rows = server.audited("request_id", request).await;
        // Sent again, it changed something the first time.
        if watched.keyed || row.repeats.is_some() {
            rows += server.audited("path", path).await;
        }
        assert!(rows > 0, "{} {path}: answered {status} and left no audit row", row.method);
    }
}
