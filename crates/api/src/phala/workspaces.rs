//! The workspaces that the caller belongs to, and the nodes of one.
//!
//! The one rule: every other workspace is not found, whether or not it exists.

use axum::extract::{Path, State};
use holdfast_control::people::workspace_id;
use holdfast_control::{Principal, people};
use holdfast_model::Timestamp;
use holdfast_model::access::Role;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::workspaces;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::page::{Page, Wanted};
use super::view::info::NodeRef;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Params, Read};
use crate::json::Json;

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
    /// The caller's key belongs to it.
    pub is_default: bool,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    pub confidential_models_enabled: bool,
}

impl Workspace {
    /// A workspace as one of its members sees it.
    pub fn of(who: &Principal, workspace: workspaces::Workspace) -> Self {
        Self {
            id: workspace_id(workspace.id),
            name: workspace.name,
            slug: Some(workspace.slug),
            tier: workspace.tier,
            role: role_word(workspace.role),
            is_default: workspace.id == who.workspace_id,
            created_at: Timestamp(workspace.created_at),
            confidential_models_enabled: false,
        }
    }
}

/// A role by the one word that answers have for it.
pub fn role_word(stored: String) -> String {
    Role::parse(&stored).map_or(stored, |role| role.word().to_owned())
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

#[derive(Debug, Deserialize, ToSchema)]
pub struct CheckSlugRequest {
    /// 1 to 50 characters.
    #[schema(min_length = 1, max_length = 50)]
    slug: String,
}

/// Whether a new workspace could have a slug.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckSlugResponse {
    pub is_valid: bool,
    /// `slug_invalid` or `slug_taken`.
    pub error_code: Option<String>,
    pub message: Option<String>,
}

/// List workspaces
///
/// Those that the caller belongs to, the oldest first.
#[utoipa::path(get, path = "/api/v1/workspaces", tag = "Workspaces", operation_id = "workspaces_list",
    params(("cursor" = Option<String>, Query, description = "Opaque cursor from the previous answer"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100, description = "30 unless told")),
    responses((status = 200, body = WorkspaceList), (status = 400, description = "The cursor is not one of this list"),
        (status = 401, description = "Authentication required")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    params: Params,
) -> Result<Json<WorkspaceList>, Failure> {
    let limit = params.integer("limit", 1, 100)?.unwrap_or(30);
    let listed = app.control.workspaces(&caller.who, params.text("cursor"), limit).await?;
    let total = Some(listed.page.total.number);
    let data = listed.page.items.into_iter().map(|workspace| Workspace::of(&caller.who, workspace)).collect();
    let pagination = Pagination { has_more: listed.next.is_some(), next_cursor: listed.next, total };
    Ok(Json(WorkspaceList { data, pagination }))
}

/// Ask whether a slug is free
#[utoipa::path(post, path = "/api/v1/workspaces/check-slug", tag = "Workspaces", operation_id = "workspaces_check_slug",
    request_body = CheckSlugRequest,
    responses((status = 200, body = CheckSlugResponse), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn check_slug(
    State(app): State<App>,
    _: Caller<Read>,
    Body(request): Body<CheckSlugRequest>,
) -> Result<Json<CheckSlugResponse>, Failure> {
    if !(1..=50).contains(&request.slug.chars().count()) {
        let why = "must have 1 to 50 characters";
        return Err(Error::field("body", "slug", "string_too_long", why).into());
    }
    let fault: Option<people::SlugFault> = app.control.slug_fault(&request.slug).await?;
    Ok(Json(CheckSlugResponse {
        is_valid: fault.is_none(),
        error_code: fault.map(|fault| fault.code.to_owned()),
        message: fault.map(|fault| fault.message.to_owned()),
    }))
}

/// Get a workspace
///
/// Any that the caller belongs to.
#[utoipa::path(get, path = "/api/v1/workspaces/{team_slug}", tag = "Workspaces", operation_id = "workspaces_get",
    params(("team_slug" = String, Path, description = "Slug or `wks_` id")),
    responses((status = 200, body = Workspace), (status = 401, description = "Authentication required"),
        (status = 404, description = "Workspace not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(slug): Path<String>,
) -> Result<Json<Workspace>, Failure> {
    let found = app.control.workspace_of(&caller.who, &slug).await?;
    Ok(Json(Workspace::of(&caller.who, found)))
}

/// List the nodes that a workspace can use
#[utoipa::path(get, path = "/api/v1/workspaces/{team_slug}/nodes", tag = "Workspaces", operation_id = "workspaces_nodes",
    params(("team_slug" = String, Path, description = "Slug or `wks_` id"),
        ("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "30 unless told")),
    responses((status = 200, body = Page<NodeRef>), (status = 401, description = "Authentication required"),
        (status = 404, description = "Workspace not found"), (status = 422, description = "Validation error")))]
pub async fn nodes(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(slug): Path<String>,
    params: Params,
) -> Result<Json<Page<NodeRef>>, Failure> {
    check_own(&caller.who, &slug)?;
    let page = Wanted::read(&params, 30)?;
    let (now, patience) = (app.control.now(), app.control.node_patience());
    let nodes = app.control.store.nodes().await?;
    Ok(Json(page.cut(nodes.iter().map(|node| NodeRef::of(node, node.is_online(now, patience))).collect())))
}

/// Every workspace but that of the caller's key is not found.
pub fn check_own(who: &Principal, slug: &str) -> Result<(), Error> {
    if slug == who.workspace_slug || hashid::decode(Prefix::Workspace, slug) == Some(who.workspace_id) {
        return Ok(());
    }
    Err(Error::new(Code::WorkspaceNotFound, "The requested workspace was not found."))
}
