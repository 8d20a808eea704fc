//! `GET /teepods/cvm-create-resources`: everything that a form for a new CVM chooses from, and what goes with what.
//!
//! The one rule: there is one KMS and every node uses it; gateways and GPUs there are none.

use axum::extract::State;
use holdfast_control::catalogue;
use holdfast_control::kms::KMS_TYPE;
use holdfast_model::error::Error;
use holdfast_store::nodes::Node;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::nodes::{self, AvailableNodes};
use super::view::{kms_id, kms_info};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;

/// What a new CVM can be made of.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmCreateResourceGraph {
    pub tier: String,
    pub capacity: nodes::Capacity,
    pub nodes: Vec<nodes::AvailableNode>,
    pub kms_nodes: Vec<CreateKms>,
    /// Which node uses which KMS, and with which images.
    pub node_kms_relations: Vec<NodeKmsRelation>,
    /// Always empty: this server has no gateways.
    #[schema(value_type = Vec<Object>)]
    pub gateway_nodes: Vec<Value>,
    pub instance_types: Vec<CreateInstanceType>,
    pub gpu_availability: GpuAvailability,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CreateKms {
    /// `kms_...`
    pub id: String,
    pub slug: Option<String>,
    pub url: String,
    pub version: Option<String>,
    /// Always `phala`: off any chain.
    pub kms_type: String,
    pub chain_id: Option<i64>,
    pub kms_contract_id: Option<String>,
    pub kms_contract_address: Option<String>,
    pub gateway_app_id: Option<String>,
    /// Names of images.
    pub supported_os_images: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NodeKmsRelation {
    pub teepod_id: i64,
    /// `kms_...`
    pub kms_id: String,
    /// Always `phala`: off any chain.
    pub kms_type: String,
    pub kms_contract_id: Option<String>,
    pub kms_contract_address: Option<String>,
    /// Names of images.
    pub supported_os_images: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CreateInstanceType {
    /// What `instance_type` of a deploy names.
    pub id: String,
    pub name: String,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub default_disk_size_gb: i64,
    pub requires_gpu: bool,
    pub requires_gpu_count: i64,
    pub family: Option<String>,
    pub display_order: Option<usize>,
}

/// GPUs to choose from: none.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct GpuAvailability {
    pub has_reserved_gpus: bool,
    pub reserved_gpu_count: i64,
    pub has_public_gpus: bool,
    pub public_gpu_count: i64,
}

/// List what CVMs can be made of
#[utoipa::path(get, path = "/api/v1/teepods/cvm-create-resources", tag = "Catalogue",
    operation_id = "teepods_create_resources",
    responses((status = 200, body = CvmCreateResourceGraph), (status = 401, description = "Authentication required")))]
pub async fn get(State(app): State<App>, caller: Caller<Read>) -> Result<Json<CvmCreateResourceGraph>, Failure> {
    let all = app.control.store.nodes().await?;
    let usable = nodes::usable(&app, &all);
    let images = catalogue::images(usable.iter().copied())?.into_iter().map(|image| image.name).collect();
    let kms = kms_info(&app.control);
    let relations = usable.iter().map(|node| relation(node)).collect::<Result<_, _>>()?;
    let AvailableNodes { tier, capacity, nodes, .. } = nodes::listed(&app, caller.who, &usable).await?;
    Ok(Json(CvmCreateResourceGraph {
        tier,
        capacity,
        nodes,
        kms_nodes: vec![CreateKms {
            id: kms.id,
            slug: kms.slug,
            url: kms.url,
            version: Some(kms.version),
            kms_type: KMS_TYPE.to_owned(),
            chain_id: None,
            kms_contract_id: None,
            kms_contract_address: None,
            gateway_app_id: None,
            supported_os_images: images,
        }],
        node_kms_relations: relations,
        gateway_nodes: Vec::new(),
        instance_types: app.control.settings.catalogue.all().iter().enumerate().map(instance_type).collect(),
        gpu_availability: GpuAvailability::default(),
    }))
}

fn relation(node: &Node) -> Result<NodeKmsRelation, Error> {
    Ok(NodeKmsRelation {
        teepod_id: node.id,
        kms_id: kms_id(),
        kms_type: KMS_TYPE.to_owned(),
        kms_contract_id: None,
        kms_contract_address: None,
        supported_os_images: node.images()?.into_iter().map(|image| image.name).collect(),
    })
}

fn instance_type((order, size): (usize, &catalogue::InstanceType)) -> CreateInstanceType {
    CreateInstanceType {
        id: size.id.clone(),
        name: size.name.clone(),
        vcpu: size.vcpu,
        memory_mb: size.memory_mb,
        default_disk_size_gb: size.disk_gb,
        requires_gpu: false,
        requires_gpu_count: 0,
        family: Some(size.family.clone()),
        display_order: Some(order),
    }
}
