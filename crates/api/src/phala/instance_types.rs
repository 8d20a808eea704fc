//! `GET /instance-types` and one family of them.
//!
//! The one rule: the clients refuse any key more than these in the outer objects; only the items may grow.

use axum::extract::{Path, State};
use holdfast_control::catalogue::{self, Catalogue};
use holdfast_model::error::{Code, Error};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;

/// All instance types, by family.
#[derive(Debug, Serialize, ToSchema)]
pub struct Families {
    pub result: Vec<Family>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FamilyGroup)]
pub struct Family {
    pub name: String,
    pub items: Vec<InstanceType>,
    pub total: usize,
}

/// The instance types of one family.
#[derive(Debug, Serialize, ToSchema)]
pub struct FamilyInstanceTypes {
    pub items: Vec<InstanceType>,
    pub total: usize,
    pub family: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceType {
    /// What `instance_type` of a deploy names, for example `tdx.small`.
    pub id: String,
    pub name: String,
    pub description: String,
    pub vcpu: i64,
    pub memory_mb: i64,
    /// A decimal number as text.
    pub hourly_rate: String,
    pub requires_gpu: bool,
    pub default_disk_size_gb: i64,
    pub family: Option<String>,
}

/// List instance types
#[utoipa::path(get, path = "/api/v1/instance-types", tag = "Catalogue", operation_id = "instance_types_list",
    responses((status = 200, body = Families), (status = 401, description = "Authentication required")))]
pub async fn list(State(app): State<App>, _: Caller<Read>) -> Json<Families> {
    let catalogue = &app.control.settings.catalogue;
    let family = |name: &str| {
        let items = items(catalogue, name);
        Family { name: name.to_owned(), total: items.len(), items }
    };
    Json(Families { result: catalogue.families().into_iter().map(family).collect() })
}

/// List the instance types of a family
#[utoipa::path(get, path = "/api/v1/instance-types/{family}", tag = "Catalogue", operation_id = "instance_types_family",
    params(("family" = String, Path, description = "For example `cpu`")),
    responses((status = 200, body = FamilyInstanceTypes), (status = 401, description = "Authentication required"),
        (status = 404, description = "No such family")))]
pub async fn family(
    State(app): State<App>,
    _: Caller<Read>,
    Path(family): Path<String>,
) -> Result<Json<FamilyInstanceTypes>, Failure> {
    let items = items(&app.control.settings.catalogue, &family);
    if items.is_empty() {
        return Err(Error::new(Code::FamilyNotFound, "There is no such family of instance types.").into());
    }
    Ok(Json(FamilyInstanceTypes { total: items.len(), items, family }))
}

fn items(catalogue: &Catalogue, family: &str) -> Vec<InstanceType> {
    catalogue.all().iter().filter(|size| size.family == family).map(item).collect()
}

fn item(size: &catalogue::InstanceType) -> InstanceType {
    InstanceType {
        id: size.id.clone(),
        name: size.name.clone(),
        description: size.description.clone(),
        vcpu: size.vcpu,
        memory_mb: size.memory_mb,
        hourly_rate: size.hourly_rate.clone(),
        requires_gpu: false,
        default_disk_size_gb: size.disk_gb,
        family: Some(size.family.clone()),
    }
}
