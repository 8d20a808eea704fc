//! `GET /auth/me`: who holds the key, and in which workspace.

use axum::extract::State;
use holdfast_control::Principal;
use holdfast_model::hashid::{self, Prefix};
use serde::Serialize;
use utoipa::ToSchema;

use super::version::{Asked, Version};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;

/// The key's holder, in the variant of the schema version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Me {
    Flat(FlatUser),
    Nested(Box<CurrentUser>),
}

/// The key's holder (2025-10-28).
#[derive(Debug, Serialize, ToSchema)]
pub struct FlatUser {
    pub username: String,
    pub email: String,
    pub credits: i64,
    pub granted_credits: i64,
    pub avatar: String,
    pub team_name: String,
    pub team_tier: String,
}

/// The key's holder (2026-01-21 and later).
#[derive(Debug, Serialize, ToSchema)]
pub struct CurrentUser {
    pub user: User,
    pub workspace: CurrentWorkspace,
    pub credits: Credits,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct User {
    /// `usr_...`
    pub id: String,
    pub username: String,
    pub email: String,
    /// `admin` or `user`.
    pub role: String,
    pub avatar: String,
    pub email_verified: bool,
    pub totp_enabled: bool,
    pub has_backup_codes: bool,
    pub flag_has_password: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CurrentWorkspace {
    /// `wks_...`
    pub id: String,
    pub name: String,
    pub slug: Option<String>,
    pub tier: String,
    /// The holder's role in the workspace.
    pub role: String,
    pub avatar: Option<String>,
}

/// Money, as decimal text. Nothing is charged here.
#[derive(Debug, Serialize, ToSchema)]
pub struct Credits {
    pub balance: String,
    pub granted_balance: String,
    pub is_post_paid: bool,
    pub outstanding_amount: Option<String>,
}

/// Current user
#[utoipa::path(get, path = "/api/v1/auth/me", tag = "Workspaces", operation_id = "auth_me",
    responses((status = 200, body = Me), (status = 401, description = "Authentication required")))]
pub async fn me(State(app): State<App>, caller: Caller<Read>, asked: Asked) -> Result<Json<Me>, Failure> {
    let version = asked.of(&caller.who);
    if version == Version::V20251028 {
        return Ok(Json(Me::Flat(flat(caller.who))));
    }
    let has_password = app.control.store.has_password(caller.who.user_id).await?;
    Ok(Json(Me::Nested(Box::new(nested(caller.who, has_password)))))
}

fn flat(who: Principal) -> FlatUser {
    FlatUser {
        username: who.username,
        email: who.email,
        credits: 0,
        granted_credits: 0,
        avatar: String::new(),
        team_name: who.workspace_name,
        team_tier: who.workspace_tier,
    }
}

fn nested(who: Principal, has_password: bool) -> CurrentUser {
    CurrentUser {
        user: User {
            id: hashid::encode(Prefix::User, who.user_id),
            // The clients know no third word.
            role: if who.is_admin() { "admin" } else { "user" }.to_owned(),
            username: who.username,
            email: who.email,
            avatar: String::new(),
            email_verified: true,
            totp_enabled: false,
            has_backup_codes: false,
            flag_has_password: has_password,
        },
        workspace: CurrentWorkspace {
            id: hashid::encode(Prefix::Workspace, who.workspace_id),
            name: who.workspace_name,
            slug: Some(who.workspace_slug),
            tier: who.workspace_tier,
            role: who.member_role,
            avatar: None,
        },
        credits: Credits {
            balance: "0".to_owned(),
            granted_balance: "0".to_owned(),
            is_post_paid: false,
            outstanding_amount: None,
        },
    }
}
