//! Nodes, for administrators.

use axum::extract::State;
use holdfast_control::placement;
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::nodes;
use serde::Serialize;
use utoipa::ToSchema;

use super::said::ForAdministrators;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, RunInstallation};
use crate::json::Json;

/// A host that runs CVMs.
#[derive(Debug, Serialize, ToSchema)]
pub struct Node {
    pub id: String,
    pub name: String,
    pub region: Option<String>,
    /// `ONLINE`, `OFFLINE` or `MAINTENANCE`.
    pub status: &'static str,
    /// True when it can take new CVMs.
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
    pub version: String,
    /// `qemu` or `simulated`.
    pub hypervisor: String,
    pub hypervisor_version: String,
    /// `kvm`, `tcg` or `simulated`.
    pub accelerator: String,
    /// False: nothing here is confidential; the operator's root can read the memory of every CVM.
    pub tee: bool,
    pub capacity: Room,
    pub free: Room,
    pub cvms: i64,
    /// Names of the guest images it has.
    pub images: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    pub last_seen_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// An amount of what a node has to give. For vCPU and disk `capacity` is what the host has and `free` counts with the
/// overcommit factor.
#[derive(Debug, Serialize, ToSchema)]
pub struct Room {
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub slots: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NodeList {
    pub items: Vec<Node>,
}

/// List nodes
#[utoipa::path(get, path = "/holdfast/v1/nodes", tag = "Nodes", security(("key" = []), ("bearer" = [])), responses(
    (status = 200, body = NodeList),
    ForAdministrators,
))]
pub async fn list(State(app): State<App>, _: Caller<RunInstallation>) -> Result<Json<NodeList>, Failure> {
    let nodes = app.control.store.nodes().await?;
    let items = nodes.into_iter().map(|node| view(&app, node)).collect::<Result<_, _>>()?;
    Ok(Json(NodeList { items }))
}

fn view(app: &App, node: nodes::Node) -> Result<Node, Error> {
    let free = placement::free(&node, app.control.policy());
    let images = node.images()?.into_iter().map(|i| i.name).collect();
    Ok(Node {
        status: app.control.node_status(&node),
        id: node.uuid,
        name: node.name,
        region: node.region,
        ready: node.ready,
        reason: node.reason,
        version: node.version,
        hypervisor: node.hypervisor,
        hypervisor_version: node.hypervisor_version,
        accelerator: node.accelerator,
        tee: node.tee,
        capacity: Room { vcpu: node.vcpu, memory_mb: node.memory_mb, disk_gb: node.disk_gb, slots: node.slots },
        free: Room { vcpu: free.vcpu, memory_mb: free.memory_mb, disk_gb: free.disk_gb, slots: free.slots },
        cvms: node.used_slots,
        images,
        last_seen_at: Timestamp(node.last_seen_at),
        created_at: Timestamp(node.created_at),
    })
}
