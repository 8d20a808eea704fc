//! Lists of CVMs, whole and by pages.

use axum::extract::State;
use holdfast_control::Principal;
use holdfast_model::access::Action;
use holdfast_model::error::Error;
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::vms::{Filter, Vm};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;
use crate::phala::page::{Page, Wanted};
use crate::phala::version::{Asked, Version};
use crate::phala::view;
use crate::phala::view::hosted::HostedCvm;
use crate::phala::view::info::CvmInfo;

/// The most CVMs that a list without pages shows.
const MOST: i64 = 1000;

/// CVMs in the variant of the schema version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Cvms {
    /// 2025-10-28
    Hosted(Vec<HostedCvm>),
    /// 2026-01-21 and later
    Info(Vec<CvmInfo>),
}

/// A page of CVMs in the variant of the schema version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum CvmPage {
    /// 2025-10-28
    Hosted(Page<HostedCvm>),
    /// 2026-01-21 and later
    Info(Page<CvmInfo>),
}

/// List CVMs (paginated)
#[utoipa::path(get, path = "/api/v1/cvms/paginated", tag = "CVMs", operation_id = "cvms_paginated",
    params(("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "30 unless told"),
        ("teepod_id" = Option<i64>, Query, description = "Only on this node; of all workspaces for administrators"),
        ("user_id" = Option<String>, Query, description = "Only of this user (`usr_...`); `0` for nobody's")),
    responses((status = 200, body = CvmPage), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn paginated(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    params: Params,
) -> Result<Json<CvmPage>, Failure> {
    let page = Wanted::read(&params, 30)?;
    let filter = filter(&caller.who, &params)?;
    let (vms, total) = app.control.store.vms_page(&filter, page.size, page.offset()).await?;
    Ok(Json(match render(&app, asked.of(&caller.who), vms).await? {
        Cvms::Hosted(items) => CvmPage::Hosted(page.of(items, total)),
        Cvms::Info(items) => CvmPage::Info(page.of(items, total)),
    }))
}

/// List CVMs
///
/// The newest 1000; use the paginated list for more.
#[utoipa::path(get, path = "/api/v1/cvms", tag = "CVMs", operation_id = "cvms_list",
    params(("teepod_id" = Option<i64>, Query, description = "Only on this node; of all workspaces for administrators"),
        ("user_id" = Option<String>, Query, description = "Only of this user (`usr_...`); `0` for nobody's")),
    responses((status = 200, body = Cvms), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn all(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    params: Params,
) -> Result<Json<Cvms>, Failure> {
    let filter = filter(&caller.who, &params)?;
    let vms = app.control.store.vms(&filter, MOST, 0).await?;
    Ok(Json(render(&app, asked.of(&caller.who), vms).await?))
}

/// What the caller sees; for whoever runs the installation all of them, once they ask for a node's CVMs or a user's.
fn filter(who: &Principal, params: &Params) -> Result<Filter<'static>, Error> {
    let node = params.integer("teepod_id", 0, i64::MAX)?.or(params.integer("node_id", 0, i64::MAX)?);
    let user = params.word("user_id", |text| match text {
        // Every CVM has an owner, and no owner has the key 0.
        "0" => Some(0),
        _ => hashid::decode(Prefix::User, text),
    })?;
    let everywhere = (node.is_some() || user.is_some()) && who.may(Action::RunInstallation);
    let scope = (!everywhere).then(|| who.scope());
    Ok(Filter { scope, node_id: node, user_id: user, ..Filter::default() })
}

/// CVMs in the shape of a version.
pub async fn render(app: &App, version: Version, vms: Vec<Vm>) -> Result<Cvms, Error> {
    let cvms = view::load(&app.control, vms).await?;
    Ok(match version {
        Version::V20251028 => {
            let mut events = view::load_events(&app.control, &cvms).await?;
            let hosted =
                |cvm: &view::Cvm| HostedCvm::of(&app.control, cvm, events.remove(&cvm.vm.id).unwrap_or_default());
            Cvms::Hosted(cvms.iter().map(hosted).collect())
        }
        _ => Cvms::Info(cvms.iter().map(CvmInfo::of).collect()),
    })
}
