//! Tokens with which hosts join as nodes.
//!
//! The one rule: the token is in the answer that made it and in no other. A repetition of that request under its
//! `Idempotency-Key` says 409 and names what was made.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::node_tokens::public_id;
use holdfast_model::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::said::ForAdministrators;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, RunInstallation};
use crate::json::Json;

#[derive(Debug, Deserialize, ToSchema)]
pub struct NodeTokenRequest {
    /// For people: 1 to 63 letters, digits, dots, dashes and underscores. Need not be unique.
    name: String,
}

/// A token that was just made.
#[derive(Serialize, ToSchema)]
pub struct CreatedNodeToken {
    /// `ntk_...`
    id: String,
    name: String,
    /// For `holdfast node --token`. Shown here and never again.
    token: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// A token, without the token.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeToken {
    id: String,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Timestamp>,
    /// The node that joined with it.
    node: Option<TokenNode>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TokenNode {
    id: String,
    name: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NodeTokenList {
    /// Oldest first.
    items: Vec<NodeToken>,
}

/// Make a node token
///
/// The token is shown once. A repetition under the same `Idempotency-Key` is answered 409 and names the token's id.
#[utoipa::path(post, path = "/holdfast/v1/node-tokens", tag = "Nodes", security(("key" = []), ("bearer" = [])),
    request_body = NodeTokenRequest, responses(
    (status = 201, body = CreatedNodeToken),
    ForAdministrators,
    (status = 409, description = "Already created under this idempotency key"),
    (status = 422, description = "The name is not valid"),
))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Body(request): Body<NodeTokenRequest>,
) -> Result<(StatusCode, Json<CreatedNodeToken>), Failure> {
    let made = app.control.node_token_create(&caller.who, &info, &request.name).await?;
    let body = CreatedNodeToken {
        id: made.id,
        name: request.name,
        token: made.token.to_string(),
        created_at: made.created_at,
    };
    Ok((StatusCode::CREATED, Json(body)))
}

/// List node tokens
///
/// Revoked ones too; the tokens themselves are kept nowhere.
#[utoipa::path(get, path = "/holdfast/v1/node-tokens", tag = "Nodes", security(("key" = []), ("bearer" = [])), responses(
    (status = 200, body = NodeTokenList),
    ForAdministrators,
))]
pub async fn list(State(app): State<App>, caller: Caller<RunInstallation>) -> Result<Json<NodeTokenList>, Failure> {
    let items = app.control.node_tokens(&caller.who).await?.into_iter().map(|token| NodeToken {
        id: public_id(token.id),
        name: token.name,
        created_at: Timestamp(token.created_at),
        revoked_at: token.revoked_at.map(Timestamp),
        node: token.node_uuid.zip(token.node_name).map(|(id, name)| TokenNode { id, name }),
    });
    Ok(Json(NodeTokenList { items: items.collect() }))
}

/// Revoke a node token
///
/// The session of the node that uses it ends; its CVMs run on, unheard of.
#[utoipa::path(delete, path = "/holdfast/v1/node-tokens/{id}", tag = "Nodes", security(("key" = []), ("bearer" = [])), params(
    ("id" = String, Path, description = "`ntk_` id"),
), responses(
    (status = 204, description = "Revoked"),
    ForAdministrators,
    (status = 404, description = "There is no such token, or it is revoked already"),
))]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    app.control.node_token_revoke(&caller.who, &info, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
