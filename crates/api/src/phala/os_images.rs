//! `GET /os-images`: what CVMs can boot.
//!
//! The one rule: a node that takes no new CVMs offers nothing.

use axum::extract::State;
use holdfast_control::catalogue;
use serde::Serialize;
use utoipa::ToSchema;

use super::lenient::switch;
use super::nodes::usable;
use super::page::{Page, Wanted};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;

/// An OS image that some node offers, of those that take new CVMs.
#[derive(Debug, Serialize, ToSchema)]
pub struct OsImage {
    pub name: String,
    /// What `image` of a deploy names; the same as the name.
    pub slug: String,
    pub version: String,
    pub os_image_hash: Option<String>,
    pub is_dev: bool,
    pub requires_gpu: bool,
}

/// List OS images
#[utoipa::path(get, path = "/api/v1/os-images", tag = "Catalogue", operation_id = "os_images_list",
    params(("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "20 unless told"),
        ("is_dev" = Option<bool>, Query, description = "Only images for development, or only others")),
    responses((status = 200, body = Page<OsImage>), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn list(State(app): State<App>, _: Caller<Read>, params: Params) -> Result<Json<Page<OsImage>>, Failure> {
    let page = Wanted::read(&params, 20)?;
    let is_dev = switch(&params, "is_dev")?;
    let nodes = app.control.store.nodes().await?;
    let images = catalogue::images(usable(&app, &nodes))?;
    let shown = images.into_iter().filter(|image| is_dev.is_none_or(|dev| dev == image.is_dev));
    let items = shown.map(|image| OsImage {
        slug: image.name.clone(),
        name: image.name,
        version: image.version,
        os_image_hash: image.os_image_hash,
        is_dev: image.is_dev,
        requires_gpu: false,
    });
    Ok(Json(page.cut(items.collect())))
}
