//! `GET /apps/{app_id}/revisions`: everything that an app's CVMs were told to run, newest first.
//!
//! The one rule: a revision is what was accepted, whether or not it came to run; a failed update's is in the list too,
//! and can be tried again.

use axum::extract::{Path, State};
use holdfast_control::apps::revision_id;
use holdfast_model::Timestamp;
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::app_revisions::AppRevision;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;
use crate::phala::lenient::switch;
use crate::phala::page::Wanted;
use crate::phala::view::info::{UserRef, WorkspaceRef};

#[derive(Debug, Serialize, ToSchema)]
pub struct AppRevisionsResponse {
    pub revisions: Vec<AppRevisionResponse>,
    pub total: i64,
    pub page: i64,
    pub page_size: i64,
    pub total_pages: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AppRevisionResponse {
    pub revision_id: String,
    /// 40 hex digits.
    pub app_id: String,
    pub vm_uuid: String,
    /// sha256 of its app-compose.json.
    pub compose_hash: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// W3C trace id of the request that asked for it.
    pub trace_id: Option<String>,
    /// `create`, `compose_update`, `resize`, ...
    pub operation_type: String,
    /// Null when the operation has left by age.
    pub triggered_by: Option<UserRef>,
    pub cvm: Option<CvmRef>,
    pub workspace: Option<WorkspaceRef>,
}

/// A revision with what it runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct AppRevisionDetailResponse {
    #[serde(flatten)]
    pub revision: AppRevisionResponse,
    /// app-compose.json: an object, or its very bytes as text when they were asked for.
    #[schema(value_type = Option<Object>)]
    pub compose_file: Option<Value>,
    /// Hex of the ciphertext; empty when it had none, or when its CVM is gone.
    pub encrypted_env: String,
    /// Empty when it had none.
    pub user_config: String,
}

/// The CVM of a revision.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmRef {
    /// Always `cvm`.
    pub object_type: &'static str,
    /// `cvm_...`
    pub id: Option<String>,
    pub name: Option<String>,
    /// 40 hex digits.
    pub app_id: Option<String>,
    pub vm_uuid: String,
}

/// List app revisions
#[utoipa::path(get, path = "/api/v1/apps/{app_id}/revisions", tag = "Apps", operation_id = "apps_revisions",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id"),
        ("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "50 unless told")),
    responses((status = 200, body = AppRevisionsResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "App not found"), (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(app_id): Path<String>,
    params: Params,
) -> Result<Json<AppRevisionsResponse>, Failure> {
    let page = Wanted::read_up_to(&params, 50, 1000)?;
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let (revisions, total) = app.control.store.app_revisions(row.id, page.size, page.offset()).await?;
    Ok(Json(AppRevisionsResponse {
        revisions: revisions.into_iter().map(|revision| shown(revision, &row.app_id, &caller)).collect(),
        total,
        page: page.page,
        page_size: page.size,
        total_pages: page.pages(total),
    }))
}

/// Get an app revision
#[utoipa::path(get, path = "/api/v1/apps/{app_id}/revisions/{revision_id}", tag = "Apps",
    operation_id = "apps_revision",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them, or `prj_` id"),
        ("revision_id" = String, Path),
        ("raw_compose_file" = Option<bool>, Query, description = "app-compose.json as the text that was hashed")),
    responses((status = 200, body = AppRevisionDetailResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "App or revision not found"), (status = 422, description = "Validation error")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path((app_id, revision)): Path<(String, String)>,
    params: Params,
) -> Result<Json<AppRevisionDetailResponse>, Failure> {
    let raw = switch(&params, "raw_compose_file")?.unwrap_or(false);
    let row = app.control.app_find(&caller.who, &app_id).await?;
    let revision = app.control.app_revision_find(&row, &revision).await?;
    let contents = app.control.store.revision_contents(revision.vm_id, revision.revision).await?;
    let compose_file = if raw { Some(contents.compose.into()) } else { serde_json::from_str(&contents.compose).ok() };
    Ok(Json(AppRevisionDetailResponse {
        revision: shown(revision, &row.app_id, &caller),
        compose_file,
        encrypted_env: contents.encrypted_env.unwrap_or_default(),
        user_config: contents.user_config.unwrap_or_default(),
    }))
}

fn shown(revision: AppRevision, app_id: &str, caller: &Caller<Read>) -> AppRevisionResponse {
    let who = &caller.who;
    let archived = if revision.revision == 1 { "create" } else { "update" };
    AppRevisionResponse {
        revision_id: revision_id(&revision),
        app_id: app_id.to_owned(),
        compose_hash: revision.compose_hash,
        created_at: Timestamp(revision.created_at),
        trace_id: revision.trace_id,
        operation_type: revision.operation_type.unwrap_or_else(|| archived.to_owned()),
        triggered_by: revision.user_id.map(|id| UserRef {
            object_type: "user",
            id: Some(hashid::encode(Prefix::User, id)),
            username: revision.username,
            avatar_url: None,
        }),
        cvm: Some(CvmRef {
            object_type: "cvm",
            id: Some(hashid::encode(Prefix::Cvm, revision.vm_id)),
            name: Some(revision.name),
            app_id: Some(app_id.to_owned()),
            vm_uuid: revision.vm_uuid.clone(),
        }),
        workspace: Some(WorkspaceRef {
            object_type: "workspace",
            id: hashid::encode(Prefix::Workspace, who.workspace_id),
            name: who.workspace_name.clone(),
            slug: Some(who.workspace_slug.clone()),
            avatar_url: None,
        }),
        vm_uuid: revision.vm_uuid,
    }
}
