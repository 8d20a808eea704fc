//! All workspaces and who belongs to them, for whoever runs the installation.
//!
//! The one rule: the rules of the workspaces hold here too: a slug is one workspace's, and an owner stays.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::people::{NewWorkspace, Right, WorkspaceChange, user_id, workspace_id};
use holdfast_model::Timestamp;
use holdfast_model::access::Role;
use holdfast_store::{members, workspaces};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::said::{ForAdministrators, Paging};
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Params, RunInstallation};
use crate::json::Json;

/// A workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct Workspace {
    /// `wks_...`
    pub id: String,
    pub slug: String,
    pub name: String,
    pub tier: String,
    /// No key of it works.
    pub disabled: bool,
    /// How many belong to it.
    pub members: i64,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl Workspace {
    fn of(workspace: workspaces::Workspace) -> Self {
        Self {
            id: workspace_id(workspace.id),
            slug: workspace.slug,
            name: workspace.name,
            tier: workspace.tier,
            disabled: workspace.disabled_at.is_some(),
            members: workspace.members,
            created_at: Timestamp(workspace.created_at),
        }
    }
}

/// A member of a workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct Member {
    /// `usr_...`
    pub user: String,
    pub username: String,
    pub email: String,
    /// `owner`, `admin`, `member` or `reader`.
    pub role: String,
    #[schema(value_type = String, format = DateTime)]
    pub joined_at: Timestamp,
}

impl Member {
    fn of(member: members::Member) -> Self {
        Self {
            user: user_id(member.user_id),
            username: member.username,
            email: member.email,
            role: Role::parse(&member.role).map_or(member.role, |role| role.word().to_owned()),
            joined_at: Timestamp(member.joined_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceList {
    /// Oldest first.
    pub items: Vec<Workspace>,
    pub next_cursor: Option<String>,
    pub previous_cursor: Option<String>,
    pub total: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct MemberList {
    /// In the order in which they came.
    pub items: Vec<Member>,
    pub total: i64,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct WorkspaceRequest {
    /// 1 to 50 small letters, digits and single dashes.
    slug: String,
    /// The slug unless told.
    name: Option<String>,
    /// `PRO` unless told.
    tier: Option<String>,
    /// `usr_` id or username of its first owner.
    owner: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct WorkspacePatch {
    name: Option<String>,
    tier: Option<String>,
    disabled: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct MemberRequest {
    /// `owner`, `admin`, `member` or `reader`.
    role: String,
}

/// List all workspaces
#[utoipa::path(get, path = "/holdfast/v1/workspaces", tag = "People", security(("key" = []), ("bearer" = [])), params(Paging), responses(
    (status = 200, body = WorkspaceList),
    (status = 400, description = "The cursor is not one of this list"),
    ForAdministrators,
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    page: Paging,
) -> Result<Json<WorkspaceList>, Failure> {
    let listed = app.control.workspaces_all(&caller.who, page.cursor.as_deref(), page.limit).await?;
    Ok(Json(WorkspaceList {
        total: listed.page.total.number,
        items: listed.page.items.into_iter().map(Workspace::of).collect(),
        next_cursor: listed.next,
        previous_cursor: listed.previous,
    }))
}

/// Make a workspace
///
/// With its default project and its first owner.
#[utoipa::path(post, path = "/holdfast/v1/workspaces", tag = "People", security(("key" = []), ("bearer" = [])),
    request_body = WorkspaceRequest, responses(
    (status = 201, body = Workspace),
    ForAdministrators,
    (status = 404, description = "There is no such user"),
    (status = 409, description = "A workspace has this slug"),
    (status = 422, description = "A field is not valid"),
))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Body(request): Body<WorkspaceRequest>,
) -> Result<(StatusCode, Json<Workspace>), Failure> {
    let WorkspaceRequest { slug, name, tier, owner } = request;
    let new = NewWorkspace { slug, name, tier, owner };
    let made = app.control.workspace_create(&caller.who, &info, &new).await?;
    Ok((StatusCode::CREATED, Json(Workspace::of(made))))
}

/// Get any workspace
#[utoipa::path(get, path = "/holdfast/v1/workspaces/{workspace}", tag = "People", security(("key" = []), ("bearer" = [])), params(
    ("workspace" = String, Path, description = "Slug or `wks_` id"),
), responses(
    (status = 200, body = Workspace),
    ForAdministrators,
    (status = 404, description = "There is no such workspace"),
))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Path(workspace): Path<String>,
) -> Result<Json<Workspace>, Failure> {
    Ok(Json(Workspace::of(app.control.workspace_any(&caller.who, &workspace).await?)))
}

/// Change any workspace
///
/// No key of a disabled workspace works; its CVMs stay as they are.
#[utoipa::path(patch, path = "/holdfast/v1/workspaces/{workspace}", tag = "People", security(("key" = []), ("bearer" = [])), params(
    ("workspace" = String, Path, description = "Slug or `wks_` id"),
), request_body = WorkspacePatch, responses(
    (status = 200, body = Workspace),
    ForAdministrators,
    (status = 404, description = "There is no such workspace"),
    (status = 409, description = "It would shut the caller out"),
    (status = 422, description = "A field is not valid"),
))]
pub async fn update(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path(workspace): Path<String>,
    Body(request): Body<WorkspacePatch>,
) -> Result<Json<Workspace>, Failure> {
    let WorkspacePatch { name, tier, disabled } = request;
    let change = WorkspaceChange { name, tier, disabled };
    Ok(Json(Workspace::of(app.control.workspace_change(&caller.who, &info, &workspace, &change).await?)))
}

/// List the members of any workspace
#[utoipa::path(get, path = "/holdfast/v1/workspaces/{workspace}/members", tag = "People", security(("key" = []), ("bearer" = [])), params(
    ("workspace" = String, Path, description = "Slug or `wks_` id"),
    ("limit" = Option<i64>, Query, minimum = 1, maximum = 500, description = "100 unless told"),
    ("offset" = Option<i64>, Query, minimum = 0),
), responses(
    (status = 200, body = MemberList),
    ForAdministrators,
    (status = 404, description = "There is no such workspace"),
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn members(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Path(workspace): Path<String>,
    params: Params,
) -> Result<Json<MemberList>, Failure> {
    let limit = params.integer("limit", 1, 500)?.unwrap_or(100);
    let offset = params.integer("offset", 0, i64::from(i32::MAX))?.unwrap_or(0);
    let (found, total) = app.control.members(&caller.who, Right::OfInstallation, &workspace, limit, offset).await?;
    Ok(Json(MemberList { items: found.into_iter().map(Member::of).collect(), total }))
}

/// Make a user a member of any workspace, or give them another role there
#[utoipa::path(put, path = "/holdfast/v1/workspaces/{workspace}/members/{user}", tag = "People", security(("key" = []), ("bearer" = [])), params(
    ("workspace" = String, Path, description = "Slug or `wks_` id"),
    ("user" = String, Path, description = "`usr_` id or username"),
), request_body = MemberRequest, responses(
    (status = 200, body = Member),
    (status = 400, description = "The workspace would have no owner"),
    ForAdministrators,
    (status = 404, description = "There is no such workspace or user"),
    (status = 422, description = "A field is not valid"),
))]
pub async fn member_put(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path((workspace, user)): Path<(String, String)>,
    Body(request): Body<MemberRequest>,
) -> Result<Json<Member>, Failure> {
    let member =
        app.control.member_put(&caller.who, &info, Right::OfInstallation, (&workspace, &user), &request.role).await?;
    Ok(Json(Member::of(member)))
}

/// Take a user out of any workspace
///
/// Their keys for it are revoked.
#[utoipa::path(delete, path = "/holdfast/v1/workspaces/{workspace}/members/{user}", tag = "People", security(("key" = []), ("bearer" = [])), params(
    ("workspace" = String, Path, description = "Slug or `wks_` id"),
    ("user" = String, Path, description = "`usr_` id or username"),
), responses(
    (status = 204, description = "They are no member any more"),
    (status = 400, description = "The workspace would have no owner"),
    ForAdministrators,
    (status = 404, description = "There is no such workspace or member"),
))]
pub async fn member_remove(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path((workspace, user)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    app.control.member_remove(&caller.who, &info, Right::OfInstallation, (&workspace, &user)).await?;
    Ok(StatusCode::NO_CONTENT)
}
