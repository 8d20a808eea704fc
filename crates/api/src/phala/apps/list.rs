//! The list of apps, its filters, and what there is to filter by.

use std::collections::BTreeSet;

use axum::extract::State;
use holdfast_control::deploy::KMS_SLUG;
use holdfast_control::kms::KMS_TYPE;
use holdfast_model::error::Error;
use holdfast_store::apps;
use serde::Serialize;
use utoipa::ToSchema;

use super::{DstackApp, with_cvms};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;
use crate::phala::lenient::switch;
use crate::phala::page::Wanted;
use crate::phala::version::Asked;

#[derive(Debug, Serialize, ToSchema)]
pub struct DstackAppList {
    pub dstack_apps: Vec<DstackApp>,
    pub page: i64,
    pub page_size: i64,
    pub total: i64,
    pub total_pages: i64,
}

/// Words that the filters of the list take and that match something now, each list in order.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct FilterOptionsResponse {
    /// For `status`.
    pub statuses: BTreeSet<String>,
    /// For `base_image`.
    pub image_versions: BTreeSet<String>,
    /// For `instance_type`.
    pub instance_types: BTreeSet<String>,
    /// For `kms_slug`.
    pub kms_slugs: BTreeSet<String>,
    /// For `kms_type`.
    pub kms_types: BTreeSet<String>,
    /// For `region`.
    pub regions: BTreeSet<String>,
    /// For `node`.
    pub nodes: BTreeSet<String>,
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
    let other_kms = params.text("kms_slug").is_some_and(|slug| slug != KMS_SLUG)
        || params.text("kms_type").is_some_and(|kind| !kind.eq_ignore_ascii_case(KMS_TYPE));
    let (rows, total) = if other_kms {
        (Vec::new(), 0)
    } else {
        app.control.store.apps(&caller.who.scope(), &filter, page.size, page.offset()).await?
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

/// Words to filter apps by
#[utoipa::path(get, path = "/api/v1/apps/filter-options", tag = "Apps", operation_id = "apps_filter_options",
    responses((status = 200, body = FilterOptionsResponse), (status = 401, description = "Authentication required")))]
pub async fn filter_options(
    State(app): State<App>,
    caller: Caller<Read>,
) -> Result<Json<FilterOptionsResponse>, Failure> {
    let mut options = FilterOptionsResponse::default();
    for option in app.control.store.app_filter_options(&caller.who.scope()).await? {
        options.statuses.insert(option.status);
        options.image_versions.insert(option.image);
        options.instance_types.extend(option.instance_type);
        options.nodes.insert(option.node);
        options.regions.extend(option.region);
        options.kms_slugs.insert(KMS_SLUG.to_owned());
        options.kms_types.insert(KMS_TYPE.to_owned());
    }
    Ok(Json(options))
}
