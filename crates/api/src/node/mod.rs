//! Nodes dial in here; `holdfast_model::node` describes the protocol and the rule it keeps.

mod stream;

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::routing::{get, post};
use holdfast_model::error::{Code, Error};
use holdfast_model::guest::Keys;
use holdfast_model::node::{DesiredPage, Register, Registered, Report, ReportAck};
use uuid::Uuid;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Params, header};
use crate::json::Json;

/// The first report of a full node names all of its VMs.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/node/v1/register", post(register))
        .route("/node/v1/desired", get(desired))
        .route("/node/v1/report", post(report))
        .route("/node/v1/vms/{uuid}/keys", post(keys))
        .route("/node/v1/stream", get(stream::open))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
}

/// The row of the token that a node presented.
struct NodeCaller(i64);

impl FromRequestParts<App> for NodeCaller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let token = header(&parts.headers, "authorization").and_then(|text| text.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Error::new(Code::Unauthenticated, "A node token is required."))?;
        Ok(Self(app.control.authenticate_node(token.trim()).await?))
    }
}

fn session(params: &Params) -> Result<Uuid, Error> {
    let text = params.text("session").unwrap_or_default();
    text.parse().map_err(|_| Error::field("query", "session", "uuid_parsing", "must be a UUID"))
}

async fn register(
    State(app): State<App>,
    NodeCaller(token): NodeCaller,
    Body(hello): Body<Register>,
) -> Result<Json<Registered>, Failure> {
    Ok(Json(app.control.node_register(token, &hello).await?))
}

async fn desired(
    State(app): State<App>,
    NodeCaller(token): NodeCaller,
    params: Params,
) -> Result<Json<DesiredPage>, Failure> {
    let since = params.integer("since", 0, i64::MAX)?.unwrap_or(0).unsigned_abs();
    let wait = params.integer("wait_s", 0, 3600)?.unwrap_or(0).unsigned_abs();
    let session = session(&params)?;
    Ok(Json(app.control.node_desired(token, session, since, Duration::from_secs(wait)).await?))
}

async fn report(
    State(app): State<App>,
    NodeCaller(token): NodeCaller,
    Body(report): Body<Report>,
) -> Result<Json<ReportAck>, Failure> {
    Ok(Json(app.control.node_report(token, &report).await?))
}

async fn keys(
    State(app): State<App>,
    NodeCaller(token): NodeCaller,
    Path(vm): Path<Uuid>,
) -> Result<Json<Keys>, Failure> {
    Ok(Json(app.control.node_vm_keys(token, vm).await?))
}
