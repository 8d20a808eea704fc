//! Who belongs to a workspace, and leaving one.
//!
//! The one rule: the permission is that of the caller's role in the workspace that their key belongs to; what only an
//! owner may do the core says.

use axum::extract::{Path, State};
use holdfast_control::people::{Right, user_id};
use holdfast_model::Timestamp;
use holdfast_store::members;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::page::{Page, Wanted};
use super::workspaces::role_word;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, ManageMembers, Own, Params, Read, Whole};
use crate::json::Json;

/// Somebody who belongs to a workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct TeamMemberInfo {
    /// `usr_...`
    pub user_id: String,
    pub username: String,
    pub email: Option<String>,
    /// `owner`, `admin`, `member` or `reader`.
    pub role: String,
    #[schema(value_type = String, format = DateTime)]
    pub joined_at: Timestamp,
    /// They were the workspace's first owner.
    pub is_creator: bool,
}

impl TeamMemberInfo {
    pub fn of(member: members::Member) -> Self {
        Self {
            user_id: user_id(member.user_id),
            username: member.username,
            email: Some(member.email),
            role: role_word(member.role),
            joined_at: Timestamp(member.joined_at),
            is_creator: member.is_creator,
        }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct MemberRoleUpdateRequest {
    /// `owner`, `admin`, `member` or `reader`.
    role: String,
}

/// What was done, in words.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    pub message: &'static str,
}

/// List the members of a workspace
///
/// In the order in which they came; of any workspace that the caller belongs to.
#[utoipa::path(get, path = "/api/v1/workspaces/{workspace_slug}/members", tag = "Workspaces",
    operation_id = "workspaces_members",
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id"),
        ("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "30 unless told")),
    responses((status = 200, body = Page<TeamMemberInfo>), (status = 401, description = "Authentication required"),
        (status = 404, description = "Workspace not found"), (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(slug): Path<String>,
    params: Params,
) -> Result<Json<Page<TeamMemberInfo>>, Failure> {
    let page = Wanted::read(&params, 30)?;
    let (members, total) = app.control.members(&caller.who, Right::OfMember, &slug, page.size, page.offset()).await?;
    Ok(Json(page.of(members.into_iter().map(TeamMemberInfo::of).collect(), total)))
}

/// Give a member another role
///
/// Only an owner makes or unmakes an owner, and the last one stays.
#[utoipa::path(patch, path = "/api/v1/workspaces/{workspace_slug}/members/{user_id}", tag = "Workspaces",
    operation_id = "workspaces_member_update", request_body = MemberRoleUpdateRequest,
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id of the key's workspace"),
        ("user_id" = String, Path, description = "`usr_` id")),
    responses((status = 200, body = TeamMemberInfo), (status = 400, description = "The workspace would have no owner"),
        (status = 403, description = "The caller may not manage members, or not owners"),
        (status = 404, description = "Workspace or member not found"), (status = 422, description = "Validation error")))]
pub async fn update(
    State(app): State<App>,
    caller: Caller<ManageMembers>,
    Info(info): Info,
    Path((slug, user)): Path<(String, String)>,
    Body(request): Body<MemberRoleUpdateRequest>,
) -> Result<Json<TeamMemberInfo>, Failure> {
    let member = app.control.member_put(&caller.who, &info, Right::OfMember, (&slug, &user), &request.role).await?;
    Ok(Json(TeamMemberInfo::of(member)))
}

/// Take a member out of a workspace
///
/// Their keys for it are revoked. What they deployed stays.
#[utoipa::path(delete, path = "/api/v1/workspaces/{workspace_slug}/members/{user_id}", tag = "Workspaces",
    operation_id = "workspaces_member_remove",
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id of the key's workspace"),
        ("user_id" = String, Path, description = "`usr_` id")),
    responses((status = 200, body = Done), (status = 400, description = "The workspace would have no owner"),
        (status = 403, description = "The caller may not manage members, or not owners"),
        (status = 404, description = "Workspace or member not found")))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller<ManageMembers>,
    Info(info): Info,
    Path((slug, user)): Path<(String, String)>,
) -> Result<Json<Done>, Failure> {
    app.control.member_remove(&caller.who, &info, Right::OfMember, (&slug, &user)).await?;
    Ok(Json(Done { message: "The member was removed." }))
}

/// Leave a workspace
///
/// Any that the caller belongs to. Their keys for it are revoked, also the one that this is sent with. The last owner
/// stays.
#[utoipa::path(post, path = "/api/v1/workspaces/{workspace_slug}/leave", tag = "Workspaces",
    operation_id = "workspaces_leave",
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id")),
    responses((status = 200, body = Done), (status = 400, description = "The workspace would have no owner"),
        (status = 404, description = "Workspace not found")))]
pub async fn leave(
    State(app): State<App>,
    caller: Caller<Whole<Own>>,
    Info(info): Info,
    Path(slug): Path<String>,
) -> Result<Json<Done>, Failure> {
    app.control.workspace_leave(&caller.who, &info, &slug).await?;
    Ok(Json(Done { message: "You left the workspace." }))
}
