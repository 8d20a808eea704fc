//! `GET /cvms/{cvm_id}`: one CVM.

use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;
use crate::phala::version::{Asked, Version};
use crate::phala::view;
use crate::phala::view::basic::CvmBasicInfo;
use crate::phala::view::info::CvmInfoDetail;

/// A CVM in the variant of the schema version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum CvmDetail {
    /// 2025-10-28
    Basic(Box<CvmBasicInfo>),
    /// 2026-01-21 and later
    Info(Box<CvmInfoDetail>),
}

/// Get a CVM
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}", tag = "CVMs", operation_id = "cvms_get",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = CvmDetail), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 409, description = "The id names several CVMs")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Path(id): Path<String>,
) -> Result<Json<CvmDetail>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(Json(match asked.of(&caller.who) {
        Version::V20251028 => CvmDetail::Basic(Box::new(CvmBasicInfo::of(&app.control, &cvm))),
        _ => CvmDetail::Info(Box::new(CvmInfoDetail::of(&cvm))),
    }))
}
