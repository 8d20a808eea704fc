//! Apps and the CVMs of one.

use axum::Json;
use axum::extract::{Path, State};
use holdfast_control::Principal;
use holdfast_control::deploy::strip_app_id;
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::{apps, vms};
use serde::Serialize;
use utoipa::ToSchema;

use super::cvms::list::{self, Cvms};
use super::lenient::switch;
use super::page::Wanted;
use super::version::{Asked, Version};
use super::view;
use super::view::basic::AppCvmBasicInfo;
use super::view::info::CvmInfo;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};

/// The most CVMs that are shown with one app.
const CVMS_OF_APP: i64 = 1000;

/// An app; its CVMs are in the variant of the schema version.
#[derive(Debug, Serialize, ToSchema)]
pub struct DstackApp {
    /// `prj_...`
    pub id: String,
    pub name: String,
    /// 40 hex digits.
    pub app_id: String,
    pub app_provision_type: Option<String>,
    pub app_icon_url: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Always `phala`: this server's own KMS, off any chain.
    pub kms_type: String,
    #[schema(value_type = Option<Object>)]
    pub profile: Option<serde_json::Value>,
    /// The newest CVM.
    pub current_cvm: Option<AppCvm>,
    pub cvms: Vec<AppCvm>,
    pub cvm_count: usize,
}

/// A CVM of an app, flat (2025-10-28) or nested (2026-01-21 and later).
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum AppCvm {
    Flat(Box<AppCvmBasicInfo>),
    Nested(Box<CvmInfo>),
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DstackAppList {
    pub dstack_apps: Vec<DstackApp>,
    pub page: i64,
    pub page_size: i64,
    pub total: i64,
    pub total_pages: i64,
}

/// List apps
#[utoipa::path(get, path = "/api/v1/apps", tag = "Apps", operation_id = "apps_list",
    params(("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "20 unless told"),
        ("search" = Option<String>, Query, description = "How a name, app id, UUID or instance id begins"),
        ("status" = Option<Vec<String>>, Query, description = "CVM status, any of these"),
        ("listed" = Option<bool>, Query), ("base_image" = Option<String>, Query),
        ("instance_type" = Option<String>, Query), ("kms_slug" = Option<String>, Query),
        ("kms_type" = Option<String>, Query), ("node" = Option<String>, Query, description = "Name of a node"),
        ("region" = Option<String>, Query)),
    responses((status = 200, body = DstackAppList), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    params: Params,
) -> Result<Json<DstackAppList>, Failure> {
    let page = Wanted::read(&params, 20)?;
    let filter = filter(&params)?;
    // There is one KMS; a filter for another one matches nothing.
    let other_kms = params.text("kms_slug").is_some_and(|slug| slug != holdfast_control::deploy::KMS_SLUG)
        || params.text("kms_type").is_some_and(|kind| !kind.eq_ignore_ascii_case("phala"));
    let (rows, total) = if other_kms {
        (Vec::new(), 0)
    } else {
        app.control.store.apps(caller.who.workspace_id, &filter, page.size, page.offset()).await?
    };
    Ok(Json(DstackAppList {
        dstack_apps: with_cvms(&app, &caller.who, asked.of(&caller.who), rows).await?,
        page: page.page,
        page_size: page.size,
        total,
        total_pages: page.pages(total),
    }))
}

fn filter(params: &Params) -> Result<apps::Filter, Error> {
    let owned = |name: &str| params.text(name).map(str::to_owned);
    Ok(apps::Filter {
        search: params.text("search").map(|text| {
            // A whole UUID is found without its dashes too; every other text as it is.
            let uuid = uuid::Uuid::try_parse(text).ok().filter(|_| text.len() == 32).map(|u| u.to_string());
            let text = uuid.unwrap_or_else(|| text.trim().to_lowercase());
            let bare = text.strip_prefix("app_").or(text.strip_prefix("instance_"));
            bare.filter(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit())).unwrap_or(&text).to_owned()
        }),
        statuses: params.list("status"),
        listed: switch(params, "listed")?,
        image: owned("base_image"),
        instance_type: owned("instance_type"),
        node: owned("node"),
        region: owned("region"),
    })
}

/// Get an app
#[utoipa::path(get, path = "/api/v1/apps/{app_id}", tag = "Apps", operation_id = "apps_get",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them")),
    responses((status = 200, body = DstackApp), (status = 401, description = "Authentication required"),
        (status = 404, description = "App not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Path(app_id): Path<String>,
) -> Result<Json<DstackApp>, Failure> {
    let row = find(&app, &caller.who, &app_id).await?;
    let mut apps = with_cvms(&app, &caller.who, asked.of(&caller.who), vec![row]).await?;
    apps.pop().map(Json).ok_or_else(|| Failure(not_found()))
}

/// List app CVMs
#[utoipa::path(get, path = "/api/v1/apps/{app_id}/cvms", tag = "Apps", operation_id = "apps_cvms",
    params(("app_id" = String, Path, description = "40 hex digits, also with `app_` or `0x` before them")),
    responses((status = 200, body = Cvms), (status = 401, description = "Not authenticated"),
        (status = 404, description = "App not found")))]
pub async fn cvms(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Path(app_id): Path<String>,
) -> Result<Json<Cvms>, Failure> {
    let rows = [find(&app, &caller.who, &app_id).await?.id];
    let filter =
        vms::Filter { workspace: Some(caller.who.workspace_id), app_rows: Some(&rows), ..vms::Filter::default() };
    let vms = app.control.store.vms(&filter, CVMS_OF_APP, 0).await?;
    Ok(Json(list::render(&app, asked.of(&caller.who), vms).await?))
}

async fn find(app: &App, who: &Principal, app_id: &str) -> Result<apps::App, Error> {
    app.control.store.app(who.workspace_id, &strip_app_id(app_id)).await?.ok_or_else(not_found)
}

fn not_found() -> Error {
    Error::new(Code::AppNotFound, "The requested app was not found.")
}

/// The apps with their living CVMs, newest first.
async fn with_cvms(
    app: &App,
    who: &Principal,
    version: Version,
    rows: Vec<apps::App>,
) -> Result<Vec<DstackApp>, Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let filter = vms::Filter { workspace: Some(who.workspace_id), app_rows: Some(&keys), ..vms::Filter::default() };
    let cvms = view::load(&app.control, app.control.store.vms(&filter, CVMS_OF_APP, 0).await?).await?;
    let shape = |cvm: &view::Cvm| match version {
        Version::V20251028 => AppCvm::Flat(Box::new(AppCvmBasicInfo::of(cvm))),
        _ => AppCvm::Nested(Box::new(CvmInfo::of(cvm))),
    };
    let full = |row: apps::App| {
        let own: Vec<_> = cvms.iter().filter(|cvm| cvm.vm.app_row == row.id).collect();
        DstackApp {
            id: hashid::encode(Prefix::App, row.id),
            name: row.name,
            app_id: row.app_id,
            app_provision_type: None,
            app_icon_url: None,
            created_at: Timestamp(row.created_at),
            kms_type: "phala".to_owned(),
            profile: None,
            current_cvm: own.first().map(|cvm| shape(cvm)),
            cvm_count: own.len(),
            cvms: own.into_iter().map(shape).collect(),
        }
    };
    Ok(rows.into_iter().map(full).collect())
}
