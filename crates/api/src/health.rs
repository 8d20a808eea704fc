//! `/healthz`: the process lives. `/readyz`: it can serve a deploy.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Extension, Router};
use serde_json::{Value, json};

use crate::App;
use crate::error::Rendered;
use crate::json::Json;

pub fn routes() -> Router<App> {
    Router::new().route("/healthz", get(live)).route("/readyz", get(ready))
}

async fn live() -> Json<Value> {
    Json(json!({ "status": "ok", "version": holdfast_model::VERSION }))
}

async fn ready(State(app): State<App>) -> (StatusCode, Extension<Rendered>, Json<Value>) {
    let (status, body) = match reason(&app).await {
        None => (StatusCode::OK, json!({ "status": "ready" })),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "not ready", "reason": reason })),
    };
    (status, Extension(Rendered), Json(body))
}

/// Why a deploy could not be served now. For operators: says no more than `holdfast nodes list` does.
async fn reason(app: &App) -> Option<String> {
    let nodes = match app.control.store.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => {
            tracing::error!(%error, "not ready");
            return Some("the database does not answer".to_owned());
        }
    };
    if !app.needs_node {
        return None;
    }
    let (now, patience) = (app.control.now(), app.control.node_patience());
    let online: Vec<_> = nodes.iter().filter(|n| n.is_online(now, patience)).collect();
    if online.iter().any(|n| n.ready) {
        return None;
    }
    let why = online.first().and_then(|n| n.reason.clone());
    Some(why.unwrap_or_else(|| "no node is ONLINE".to_owned()))
}
