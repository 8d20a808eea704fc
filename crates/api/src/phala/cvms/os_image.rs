//! OS images that a CVM could boot, and booting another one.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::catalogue;
use holdfast_control::update::Update;
use holdfast_engine::ops;
use holdfast_model::image::ImageInfo;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::update::UpdateAccepted;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Read, WriteVms};
use crate::json::Json;

/// A version of the OS, for production and for development.
#[derive(Debug, Serialize, ToSchema)]
pub struct AvailableOsImage {
    pub version: [u64; 3],
    pub prod: Option<OsImageVariant>,
    pub dev: Option<OsImageVariant>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct OsImageVariant {
    pub name: String,
    /// The same as the name.
    pub slug: String,
    pub os_image_hash: Option<String>,
    /// The CVM has it.
    pub is_current: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct OsImageRequest {
    /// One of `GET /cvms/{cvm_id}/available-os-images`.
    os_image_name: String,
}

/// OS images that a CVM could boot
///
/// Those that its node has, newest first.
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/available-os-images", tag = "CVMs",
    operation_id = "cvms_available_os_images",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = Vec<AvailableOsImage>), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn available(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<Vec<AvailableOsImage>>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let mut nodes = app.control.store.nodes().await?;
    nodes.retain(|node| node.id == vm.node_id);
    let mut versions: Vec<AvailableOsImage> = Vec::new();
    for image in catalogue::images(&nodes)? {
        let version = catalogue::version_numbers(&image.version);
        let is_dev = image.is_dev;
        let variant = variant(image, &vm.image);
        // Newest first, so images of one version follow one another.
        match versions.last_mut().filter(|v| v.version == version) {
            Some(entry) if is_dev => entry.dev = entry.dev.take().or(Some(variant)),
            Some(entry) => entry.prod = entry.prod.take().or(Some(variant)),
            None => {
                let (prod, dev) = if is_dev { (None, Some(variant)) } else { (Some(variant), None) };
                versions.push(AvailableOsImage { version, prod, dev });
            }
        }
    }
    Ok(Json(versions))
}

fn variant(image: ImageInfo, current: &str) -> OsImageVariant {
    OsImageVariant {
        is_current: image.name == current,
        slug: image.name.clone(),
        name: image.name,
        os_image_hash: image.os_image_hash,
    }
}

/// Boot another OS image
///
/// The data disk is kept. A CVM that runs starts anew.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/os-image", tag = "CVMs", operation_id = "cvms_os_image_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = OsImageRequest,
    responses((status = 202, body = UpdateAccepted), (status = 400, description = "The CVM's node has no such image"),
        (status = 401, description = "Authentication required"), (status = 404, description = "CVM not found"),
        (status = 409, description = "Busy"), (status = 422, description = "Validation error")))]
pub async fn patch(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<OsImageRequest>,
) -> Result<(StatusCode, Json<UpdateAccepted>), Failure> {
    let update = Update { image: Some(request.os_image_name), ..Update::default() };
    let updated = app.control.vm_update(&caller.who, &info, &id, &ops::OS_IMAGE_UPDATE, update, 202).await?;
    Ok(UpdateAccepted::of(&updated))
}
