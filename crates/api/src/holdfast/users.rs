//! Accounts, for whoever runs the installation.
//!
//! The one rule: an account is never deleted, because the record of what it did names it; it is disabled.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::people::{NewUser, UserChange, user_id};
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::users;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::said::{ForAdministrators, Paging};
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, RunInstallation};
use crate::json::Json;

/// Somebody with an account.
#[derive(Debug, Serialize, ToSchema)]
pub struct User {
    /// `usr_...`
    pub id: String,
    pub username: String,
    pub email: String,
    /// `admin` runs the installation, `user` does not.
    pub role: String,
    /// None of their keys works.
    pub disabled: bool,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl User {
    fn of(user: users::User) -> Self {
        Self {
            id: user_id(user.id),
            username: user.username,
            email: user.email,
            role: user.role,
            disabled: user.disabled_at.is_some(),
            created_at: Timestamp(user.created_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct UserList {
    /// Oldest first.
    pub items: Vec<User>,
    pub next_cursor: Option<String>,
    pub previous_cursor: Option<String>,
    pub total: i64,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct UserRequest {
    /// 1 to 63 letters, digits, dots, dashes and underscores.
    username: String,
    email: String,
    /// `user` unless told; `admin` runs the installation.
    role: Option<String>,
    /// Slug or `wks_` id of a workspace to make them a member of.
    workspace: Option<String>,
    /// Their role in it: `member` unless told.
    workspace_role: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct UserPatch {
    /// `admin` or `user`.
    role: Option<String>,
    disabled: Option<bool>,
}

fn is_admin(role: Option<&str>) -> Result<Option<bool>, Error> {
    match role {
        None => Ok(None),
        Some("admin") => Ok(Some(true)),
        Some("user") => Ok(Some(false)),
        Some(_) => Err(Error::field("body", "role", "enum", "must be admin or user")),
    }
}

/// List users
#[utoipa::path(get, path = "/holdfast/v1/users", tag = "People", security(("key" = []), ("bearer" = [])), params(Paging), responses(
    (status = 200, body = UserList),
    (status = 400, description = "The cursor is not one of this list"),
    ForAdministrators,
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    page: Paging,
) -> Result<Json<UserList>, Failure> {
    let listed = app.control.users(&caller.who, page.cursor.as_deref(), page.limit).await?;
    Ok(Json(UserList {
        total: listed.page.total.number,
        items: listed.page.items.into_iter().map(User::of).collect(),
        next_cursor: listed.next,
        previous_cursor: listed.previous,
    }))
}

/// Make a user
///
/// The account has no key and no password yet, so nobody can sign in with it until it gets one.
#[utoipa::path(post, path = "/holdfast/v1/users", tag = "People", security(("key" = []), ("bearer" = [])),
    request_body = UserRequest, responses(
    (status = 201, body = User),
    ForAdministrators,
    (status = 404, description = "There is no such workspace"),
    (status = 409, description = "Somebody has this username or address"),
    (status = 422, description = "A field is not valid"),
))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Body(request): Body<UserRequest>,
) -> Result<(StatusCode, Json<User>), Failure> {
    let role = request.workspace_role.unwrap_or_else(|| "member".to_owned());
    let new = NewUser {
        username: request.username,
        email: request.email,
        is_admin: is_admin(request.role.as_deref())?.unwrap_or(false),
        workspace: request.workspace.map(|workspace| (workspace, role)),
    };
    let made = app.control.user_create(&caller.who, &info, &new).await?;
    Ok((StatusCode::CREATED, Json(User::of(made))))
}

/// Get a user
#[utoipa::path(get, path = "/holdfast/v1/users/{user}", tag = "People", security(("key" = []), ("bearer" = [])), params(
    ("user" = String, Path, description = "`usr_` id or username"),
), responses(
    (status = 200, body = User),
    ForAdministrators,
    (status = 404, description = "There is no such user"),
))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Path(user): Path<String>,
) -> Result<Json<User>, Failure> {
    Ok(Json(User::of(app.control.user_find(&caller.who, &user).await?)))
}

/// Change a user
///
/// Disabling one ends what their keys can do and the invitations that they gave out; enabling brings the keys back.
#[utoipa::path(patch, path = "/holdfast/v1/users/{user}", tag = "People", security(("key" = []), ("bearer" = [])), params(
    ("user" = String, Path, description = "`usr_` id or username"),
), request_body = UserPatch, responses(
    (status = 200, body = User),
    ForAdministrators,
    (status = 404, description = "There is no such user"),
    (status = 409, description = "It would shut the caller out"),
    (status = 422, description = "A field is not valid"),
))]
pub async fn update(
    State(app): State<App>,
    caller: Caller<RunInstallation>,
    Info(info): Info,
    Path(user): Path<String>,
    Body(request): Body<UserPatch>,
) -> Result<Json<User>, Failure> {
    let change = UserChange { is_admin: is_admin(request.role.as_deref())?, disabled: request.disabled };
    Ok(Json(User::of(app.control.user_change(&caller.who, &info, &user, change).await?)))
}
