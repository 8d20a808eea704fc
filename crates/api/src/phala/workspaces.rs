//! Workspaces and their nodes. A key belongs to one workspace, so a list has one item.
//!
//! The one rule: every other workspace is not found, whether or not it exists.

use axum::Json;
use axum::extract::{Path, State};
use holdfast_control::Principal;
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use serde::Serialize;
use utoipa::ToSchema;

use super::page::{Page, Wanted};
use super::view::info::NodeRef;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};

/// A workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct Workspace {
    /// `wks_...`
    pub id: String,
    pub name: String,
    pub slug: Option<String>,
    pub tier: String,
    /// The caller's role in it.
    pub role: String,
    pub is_default: bool,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    pub confidential_models_enabled: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceList {
    pub data: Vec<Workspace>,
    pub pagination: Pagination,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Pagination {
    pub has_more: bool,
    pub next_cursor: Option<String>,
    pub total: Option<i64>,
}

/// List workspaces
#[utoipa::path(get, path = "/api/v1/workspaces", tag = "Workspaces", operation_id = "workspaces_list",
    responses((status = 200, body = WorkspaceList), (status = 401, description = "Authentication required")))]
pub async fn list(State(app): State<App>, caller: Caller<Read>) -> Result<Json<WorkspaceList>, Failure> {
    let data = vec![workspace(&app, caller.who).await?];
    Ok(Json(WorkspaceList { data, pagination: Pagination { has_more: false, next_cursor: None, total: Some(1) } }))
}

/// Get a workspace
#[utoipa::path(get, path = "/api/v1/workspaces/{team_slug}", tag = "Workspaces", operation_id = "workspaces_get",
    params(("team_slug" = String, Path, description = "Slug or `wks_` id")),
    responses((status = 200, body = Workspace), (status = 401, description = "Authentication required"),
        (status = 404, description = "Workspace not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(slug): Path<String>,
) -> Result<Json<Workspace>, Failure> {
    check_own(&caller.who, &slug)?;
    Ok(Json(workspace(&app, caller.who).await?))
}

/// List the nodes that a workspace can use
#[utoipa::path(get, path = "/api/v1/workspaces/{team_slug}/nodes", tag = "Workspaces", operation_id = "workspaces_nodes",
    params(("team_slug" = String, Path, description = "Slug or `wks_` id"),
        ("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "20 unless told")),
    responses((status = 200, body = Page<NodeRef>), (status = 401, description = "Authentication required"),
        (status = 404, description = "Workspace not found"), (status = 422, description = "Validation error")))]
pub async fn nodes(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(slug): Path<String>,
    params: Params,
) -> Result<Json<Page<NodeRef>>, Failure> {
    check_own(&caller.who, &slug)?;
    let page = Wanted::read(&params, 20)?;
    let (now, patience) = (app.control.now(), app.control.node_patience());
    let nodes = app.control.store.nodes().await?;
    Ok(Json(page.cut(nodes.iter().map(|node| NodeRef::of(node, node.is_online(now, patience))).collect())))
}

/// Every other workspace is not found.
pub fn check_own(who: &Principal, slug: &str) -> Result<(), Error> {
    if slug == who.workspace_slug || hashid::decode(Prefix::Workspace, slug) == Some(who.workspace_id) {
        return Ok(());
    }
    Err(Error::new(Code::WorkspaceNotFound, "The requested workspace was not found."))
}

async fn workspace(app: &App, who: Principal) -> Result<Workspace, Error> {
    Ok(Workspace {
        id: hashid::encode(Prefix::Workspace, who.workspace_id),
        created_at: app.control.store.workspace_created_at(who.workspace_id).await?,
        name: who.workspace_name,
        slug: Some(who.workspace_slug),
        tier: who.workspace_tier,
        role: who.member_role,
        is_default: true,
        confidential_models_enabled: false,
    })
}
