//! The projects of a workspace.
//!
//! The one rule: a key that is limited to projects sees those and no others, and makes none: that is about the workspace.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_model::Timestamp;
use holdfast_store::projects;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, ManageProjects, Params, Read};
use crate::json::Json;

/// A group of apps with their CVMs.
#[derive(Debug, Serialize, ToSchema)]
pub struct Project {
    /// A UUID.
    pub id: String,
    pub name: String,
    /// Apps go to it that nobody names a project for.
    pub is_default: bool,
    /// CVMs that live in it.
    pub cvms: i64,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl Project {
    fn of(project: projects::Project) -> Self {
        Self {
            id: project.uuid,
            name: project.name,
            is_default: project.is_default,
            cvms: project.cvms,
            created_at: Timestamp(project.created_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectList {
    /// Oldest first.
    pub items: Vec<Project>,
    pub next_cursor: Option<String>,
    pub previous_cursor: Option<String>,
    pub total: i64,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct ProjectRequest {
    /// 1 to 63 letters, digits, dots, dashes and underscores, and no UUID; that of no other project of the workspace.
    name: String,
}

/// List projects
///
/// Those of the workspace, or those that the key is made for.
#[utoipa::path(get, path = "/holdfast/v1/projects", tag = "Projects", security(("key" = []), ("bearer" = [])), params(
    ("workspace" = Option<String>, Query, description = "Those of this workspace in place of the caller's: slug or `wks_` id, for administrators"),
    ("cursor" = Option<String>, Query, description = "Cursor of a previous answer"),
    ("limit" = Option<i64>, Query, minimum = 1, maximum = 500, description = "50 unless told"),
), responses(
    (status = 200, body = ProjectList),
    (status = 400, description = "The cursor is not one of this list"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Another workspace is only for administrators"),
    (status = 404, description = "There is no such workspace"),
    (status = 422, description = "A parameter is not valid"),
))]
pub async fn list(State(app): State<App>, caller: Caller<Read>, params: Params) -> Result<Json<ProjectList>, Failure> {
    let limit = params.integer("limit", 1, 500)?.unwrap_or(50);
    let workspace = params.text("workspace");
    let listed = app.control.projects(&caller.who, workspace, params.text("cursor"), limit).await?;
    Ok(Json(ProjectList {
        total: listed.page.total.number,
        items: listed.page.items.into_iter().map(Project::of).collect(),
        next_cursor: listed.next,
        previous_cursor: listed.previous,
    }))
}

/// Make a project
#[utoipa::path(post, path = "/holdfast/v1/projects", tag = "Projects", security(("key" = []), ("bearer" = [])),
    request_body = ProjectRequest, responses(
    (status = 201, body = Project),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Only for owners and administrators, with a key that is not limited to projects"),
    (status = 409, description = "A project has this name, or there are too many"),
    (status = 422, description = "The name is not valid"),
))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<ManageProjects>,
    Info(info): Info,
    Body(request): Body<ProjectRequest>,
) -> Result<(StatusCode, Json<Project>), Failure> {
    let made = app.control.project_create(&caller.who, &info, &request.name).await?;
    Ok((StatusCode::CREATED, Json(Project::of(made))))
}

/// Get a project
#[utoipa::path(get, path = "/holdfast/v1/projects/{project}", tag = "Projects", security(("key" = []), ("bearer" = [])), params(
    ("project" = String, Path, description = "UUID or name"),
), responses(
    (status = 200, body = Project),
    (status = 401, description = "No valid API key"),
    (status = 404, description = "There is no such project"),
))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<Project>, Failure> {
    Ok(Json(Project::of(app.control.project_find(&caller.who, &id).await?)))
}

/// Rename a project
#[utoipa::path(patch, path = "/holdfast/v1/projects/{project}", tag = "Projects", security(("key" = []), ("bearer" = [])), params(
    ("project" = String, Path, description = "UUID or name"),
), request_body = ProjectRequest, responses(
    (status = 200, body = Project),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Only for owners and administrators, with a key that is not limited to projects"),
    (status = 404, description = "There is no such project"),
    (status = 409, description = "Another project has this name"),
    (status = 422, description = "The name is not valid"),
))]
pub async fn rename(
    State(app): State<App>,
    caller: Caller<ManageProjects>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<ProjectRequest>,
) -> Result<Json<Project>, Failure> {
    Ok(Json(Project::of(app.control.project_rename(&caller.who, &info, &id, &request.name).await?)))
}

/// Delete a project
///
/// One in which no CVM lives. Operations, usage and audit log of those that did stay readable.
#[utoipa::path(delete, path = "/holdfast/v1/projects/{project}", tag = "Projects", security(("key" = []), ("bearer" = [])), params(
    ("project" = String, Path, description = "UUID or name"),
), responses(
    (status = 204, description = "It is gone, and its name free"),
    (status = 401, description = "No valid API key"),
    (status = 403, description = "Only for owners and administrators, with a key that is not limited to projects"),
    (status = 404, description = "There is no such project"),
    (status = 409, description = "CVMs live in it, or it is the default project"),
))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller<ManageProjects>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    app.control.project_delete(&caller.who, &info, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
