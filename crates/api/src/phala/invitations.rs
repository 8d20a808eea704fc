//! Invitations to a workspace. They are accepted at `POST /holdfast/v1/invitations/accept`.
//!
//! The one rule: `token` is the code only in the answer that made it; in lists it is how the code begins.

use axum::extract::{Path, State};
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::invitations;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::members::Done;
use super::page::{Page, Wanted};
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, ManageMembers, Params};
use crate::json::Json;

/// Role of whoever comes with a shareable code: it may be passed on, so it gives little.
const SHAREABLE_ROLE: &str = "member";

#[derive(Debug, Deserialize, ToSchema)]
pub struct InvitationCreateRequest {
    /// Whom it is meant for. The server sends no mail, and takes the code from whoever brings it first.
    email: String,
    /// `owner` (by owners only), `admin`, `member` or `reader`.
    role: String,
}

/// An invitation.
#[derive(Debug, Serialize, ToSchema)]
pub struct InvitationResponse {
    pub id: i64,
    /// Null for one that may be shared.
    pub email: Option<String>,
    pub role: String,
    /// `pending`, `accepted`, `revoked` or `expired`.
    pub status: String,
    /// The code, shown once; in lists only its beginning.
    pub token: String,
    pub inviter_name: String,
    pub inviter_email: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// A code that may be passed on, until it expires or is revoked.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShareableInvitationResponse {
    /// Where the code is accepted, with the code behind `#`, which is sent to no server.
    pub invitation_url: String,
    pub token: String,
    pub role: String,
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Words to pass on with the code.
    pub invitation_message: String,
}

/// List invitations
///
/// The newest first, with those that are over.
#[utoipa::path(get, path = "/api/v1/workspaces/{workspace_slug}/invitations", tag = "Workspaces",
    operation_id = "workspaces_invitations",
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id of the key's workspace"),
        ("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "30 unless told")),
    responses((status = 200, body = Page<InvitationResponse>), (status = 401, description = "Authentication required"),
        (status = 403, description = "The caller may not manage members"),
        (status = 404, description = "Workspace not found"), (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<ManageMembers>,
    Path(slug): Path<String>,
    params: Params,
) -> Result<Json<Page<InvitationResponse>>, Failure> {
    let page = Wanted::read(&params, 30)?;
    let (found, total) = app.control.invitations(&caller.who, &slug, page.size, page.offset()).await?;
    let now = app.control.now();
    Ok(Json(page.of(found.into_iter().map(|one| listed(one, now)).collect(), total)))
}

fn listed(one: invitations::Invitation, now: Timestamp) -> InvitationResponse {
    InvitationResponse {
        status: one.status(now).to_owned(),
        id: one.id,
        email: one.email,
        role: one.role,
        token: format!("{}...", one.prefix),
        inviter_name: one.inviter_name,
        inviter_email: one.inviter_email,
        created_at: Timestamp(one.created_at),
        expires_at: Timestamp(one.expires_at),
    }
}

/// Invite somebody
///
/// The code is shown once and works once, within seven days. It replaces an open one to the same address.
#[utoipa::path(post, path = "/api/v1/workspaces/{workspace_slug}/invitations", tag = "Workspaces",
    operation_id = "workspaces_invite", request_body = InvitationCreateRequest,
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id of the key's workspace")),
    responses((status = 200, body = InvitationResponse),
        (status = 403, description = "The caller may not manage members, or not owners"),
        (status = 404, description = "Workspace not found"),
        (status = 409, description = "Already created under this idempotency key"),
        (status = 422, description = "Validation error")))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<ManageMembers>,
    Info(info): Info,
    Path(slug): Path<String>,
    Body(request): Body<InvitationCreateRequest>,
) -> Result<Json<InvitationResponse>, Failure> {
    let email = Some(request.email.as_str());
    let made = app.control.invitation_create(&caller.who, &info, &slug, email, &request.role).await?;
    Ok(Json(InvitationResponse {
        id: made.id,
        email: made.email,
        role: made.role.word().to_owned(),
        status: "pending".to_owned(),
        token: made.code.to_string(),
        inviter_name: caller.who.username,
        inviter_email: caller.who.email,
        created_at: made.created_at,
        expires_at: made.expires_at,
    }))
}

/// Make a code that may be shared
///
/// It makes a member of everybody who brings it within seven days, until it is revoked.
#[utoipa::path(post, path = "/api/v1/workspaces/{workspace_slug}/invitations/shareable", tag = "Workspaces",
    operation_id = "workspaces_invite_shareable",
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id of the key's workspace")),
    responses((status = 200, body = ShareableInvitationResponse),
        (status = 403, description = "The caller may not manage members"),
        (status = 404, description = "Workspace not found"),
        (status = 409, description = "Already created under this idempotency key")))]
pub async fn shareable(
    State(app): State<App>,
    caller: Caller<ManageMembers>,
    Info(info): Info,
    Path(slug): Path<String>,
) -> Result<Json<ShareableInvitationResponse>, Failure> {
    let made = app.control.invitation_create(&caller.who, &info, &slug, None, SHAREABLE_ROLE).await?;
    let accept = format!("{}/holdfast/v1/invitations/accept", app.control.settings.public_url);
    let (name, code) = (&caller.who.workspace_name, made.code.as_str());
    Ok(Json(ShareableInvitationResponse {
        invitation_url: format!("{accept}#{code}"),
        token: code.to_owned(),
        role: made.role.word().to_owned(),
        expires_at: made.expires_at,
        invitation_message: format!(
            "You are invited to the workspace {name}. To join, send {{\"code\": \"{code}\"}} with your API key to {accept}."
        ),
    }))
}

/// Revoke an invitation
#[utoipa::path(delete, path = "/api/v1/workspaces/{workspace_slug}/invitations/{invitation_id}", tag = "Workspaces",
    operation_id = "workspaces_invitation_revoke",
    params(("workspace_slug" = String, Path, description = "Slug or `wks_` id of the key's workspace"),
        ("invitation_id" = i64, Path, minimum = 1)),
    responses((status = 200, body = Done), (status = 403, description = "The caller may not manage members"),
        (status = 404, description = "Workspace or invitation not found"),
        (status = 409, description = "The invitation is over already"),
        (status = 422, description = "Validation error")))]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller<ManageMembers>,
    Info(info): Info,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Json<Done>, Failure> {
    let wrong = |why| Error::field("path", "invitation_id", "int_parsing", why);
    let number: i64 = id.parse().map_err(|_| wrong("must be a whole number"))?;
    if number < 1 {
        return Err(wrong("must be at least 1").into());
    }
    app.control.invitation_revoke(&caller.who, &info, &slug, number).await?;
    Ok(Json(Done { message: "The invitation was revoked." }))
}
