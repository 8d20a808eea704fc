//! `GET /teepods/available`: nodes that a deploy can be sent to, and what is left on them.

use axum::extract::State;
use holdfast_control::Principal;
use holdfast_control::catalogue::version_numbers;
use holdfast_control::deploy::KMS_SLUG;
use holdfast_control::placement::{Policy, free, is_usable};
use holdfast_model::error::Error;
use holdfast_store::nodes::Node;
use holdfast_store::quotas::Limits;
use serde::Serialize;
use utoipa::ToSchema;

use super::view::kms_info;
use super::view::parts::KmsInfo;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;

/// Nodes to deploy to.
#[derive(Debug, Serialize, ToSchema)]
pub struct AvailableNodes {
    pub tier: String,
    pub capacity: Capacity,
    pub nodes: Vec<AvailableNode>,
    pub kms_list: Vec<KmsInfo>,
}

/// The most that the workspace may have, as `GET /workspaces/{team_slug}/quotas` says; null where nothing limits it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Capacity {
    pub max_instances: Option<i64>,
    pub max_vcpu: Option<i64>,
    /// MB.
    pub max_memory: Option<i64>,
    /// GB.
    pub max_disk: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AvailableNode {
    pub teepod_id: i64,
    pub name: String,
    pub listed: bool,
    /// Share of the node's memory that is free, 0 to 100.
    pub resource_score: f64,
    pub remaining_vcpu: i64,
    /// MB.
    pub remaining_memory: i64,
    pub remaining_cvm_slots: i64,
    pub images: Vec<AvailableImage>,
    pub support_onchain_kms: bool,
    pub fmspc: Option<String>,
    pub device_id: Option<String>,
    pub region_identifier: Option<String>,
    pub default_kms: Option<String>,
    /// Slugs of the KMS that the node can use.
    pub kms_list: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AvailableImage {
    pub name: String,
    pub is_dev: bool,
    pub version: [u64; 3],
    pub os_image_hash: Option<String>,
}

/// List nodes with room
#[utoipa::path(get, path = "/api/v1/teepods/available", tag = "Catalogue", operation_id = "teepods_available",
    responses((status = 200, body = AvailableNodes), (status = 401, description = "Authentication required")))]
pub async fn available(State(app): State<App>, caller: Caller<Read>) -> Result<Json<AvailableNodes>, Failure> {
    let nodes = app.control.store.nodes().await?;
    Ok(Json(listed(&app, caller.who, &usable(&app, &nodes)).await?))
}

/// The nodes that take new CVMs.
pub fn usable<'a>(app: &App, nodes: &'a [Node]) -> Vec<&'a Node> {
    let policy = app.control.policy();
    nodes.iter().filter(|node| is_usable(node, policy)).collect()
}

/// These nodes, and what the caller's workspace may have on all nodes together.
pub async fn listed(app: &App, who: Principal, nodes: &[&Node]) -> Result<AvailableNodes, Error> {
    let policy = app.control.policy();
    let Limits { vm_slots, vcpu, memory_mb, disk_gb } = app.control.store.quota_limits(who.workspace_id).await?;
    Ok(AvailableNodes {
        tier: who.workspace_tier,
        capacity: Capacity { max_instances: vm_slots, max_vcpu: vcpu, max_memory: memory_mb, max_disk: disk_gb },
        nodes: nodes.iter().map(|node| available_node(node, policy)).collect::<Result<_, _>>()?,
        kms_list: vec![kms_info(&app.control)],
    })
}

fn available_node(node: &Node, policy: Policy) -> Result<AvailableNode, Error> {
    let left = free(node, policy);
    let image = |image: holdfast_model::image::ImageInfo| AvailableImage {
        version: version_numbers(&image.version),
        name: image.name,
        is_dev: image.is_dev,
        os_image_hash: image.os_image_hash,
    };
    Ok(AvailableNode {
        teepod_id: node.id,
        name: node.name.clone(),
        listed: true,
        resource_score: 100.0 * left.memory_mb as f64 / node.memory_mb.max(1) as f64,
        remaining_vcpu: left.vcpu,
        remaining_memory: left.memory_mb,
        remaining_cvm_slots: left.slots,
        images: node.images()?.into_iter().map(image).collect(),
        support_onchain_kms: false,
        fmspc: None,
        device_id: None,
        region_identifier: node.region.clone(),
        default_kms: Some(KMS_SLUG.to_owned()),
        kms_list: vec![KMS_SLUG.to_owned()],
    })
}
