//! `/apps`: apps, in the variant of each schema version, and everything that is told of one.
//!
//! The one rule: an app is its app id. It is listed while one of its CVMs lives, and found for ever; what happened to it
//! and what it used can be read after its last CVM is gone.

mod detail;
mod device_allowlist;
mod events;
mod instances;
mod list;
mod redeploy;
mod revisions;
mod usage;

use holdfast_control::Principal;
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::{apps, vms};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::cvms::replicas;
use super::version::Version;
use super::view;
use super::view::basic::AppCvmBasicInfo;
use super::view::info::CvmInfo;
use crate::{App, dry_run};

/// The most CVMs that are shown with one app.
const CVMS_OF_APP: i64 = 1000;

pub fn routes() -> OpenApiRouter<App> {
    let with_dry_run = OpenApiRouter::new()
        .routes(routes!(instances::create))
        .routes(routes!(replicas::of_app))
        .routes(routes!(redeploy::of_cvm));
    OpenApiRouter::new()
        .routes(routes!(list::list))
        .routes(routes!(list::filter_options))
        .routes(routes!(detail::get))
        .routes(routes!(detail::cvms))
        .routes(routes!(device_allowlist::get))
        .routes(routes!(events::list))
        .routes(routes!(usage::list))
        .routes(routes!(revisions::list))
        .routes(routes!(revisions::get))
        .routes(routes!(redeploy::of_app))
        .merge(dry_run::routes(with_dry_run))
}

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
    /// The workspace; only in 2025-10-28.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_name: Option<String>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_slug: Option<String>,
}

/// A CVM of an app, flat (2025-10-28) or nested (2026-01-21 and later).
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum AppCvm {
    Flat(Box<AppCvmBasicInfo>),
    Nested(Box<CvmInfo>),
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
    let filter = vms::Filter { scope: Some(who.scope()), app_rows: Some(&keys), ..vms::Filter::default() };
    let cvms = view::load(&app.control, app.control.store.vms(&filter, CVMS_OF_APP, 0).await?).await?;
    let is_flat = version == Version::V20251028;
    let shape = |cvm: &view::Cvm| match is_flat {
        true => AppCvm::Flat(Box::new(AppCvmBasicInfo::of(cvm))),
        false => AppCvm::Nested(Box::new(CvmInfo::of(cvm))),
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
            team_name: is_flat.then(|| who.workspace_name.clone()),
            team_slug: is_flat.then(|| who.workspace_slug.clone()),
        }
    };
    Ok(rows.into_iter().map(full).collect())
}
