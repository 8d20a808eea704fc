//! `GET /kms/{kms_id}/info`: everything that can be said of the KMS, and what cannot.
//!
//! The one rule: it runs in the server, and no TEE vouches for it; whatever would be measured is null with the reason
//! beside it, and never made up.

use axum::extract::{Path, State};
use holdfast_control::deploy::KMS_SLUG;
use holdfast_control::kms::{self, KMS_TYPE};
use holdfast_model::VERSION;
use holdfast_model::error::Error;
use holdfast_store::nodes::Node;
use serde::Serialize;
use utoipa::ToSchema;

use super::view::kms_id;
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;

/// A KMS, looked at closely.
#[derive(Debug, Serialize, ToSchema)]
pub struct KmsInspectResponse {
    /// `kms_...`
    pub id: String,
    pub slug: Option<String>,
    pub endpoint: String,
    /// Always `phala`: off any chain.
    pub kms_type: String,
    pub db_version: String,
    /// What the KMS says of itself.
    pub rpc: Option<KmsRpcInfo>,
    pub rpc_error: Option<String>,
    /// Null: no guest agent measures this KMS.
    #[schema(value_type = Option<Object>)]
    pub guest_agent: Option<serde_json::Value>,
    pub guest_agent_error: Option<String>,
    /// Null: it is on no chain.
    #[schema(value_type = Option<Object>)]
    pub on_chain: Option<serde_json::Value>,
    /// Nodes whose CVMs get their keys from it.
    pub teepods: Vec<TeepodInfo>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct KmsRpcInfo {
    pub version: String,
    /// True: the keys are not inside a TEE.
    pub is_dev: bool,
    pub bootstrap_info: BootstrapInfo,
    pub chain_id: Option<i64>,
    pub kms_contract_address: Option<String>,
    pub gateway_app_id: Option<String>,
    pub version_synced: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct BootstrapInfo {
    /// A P-256 SubjectPublicKeyInfo in hex.
    pub ca_pubkey: String,
    /// A compressed secp256k1 point in hex.
    pub k256_pubkey: String,
    /// 0: there is no quote.
    pub quote_length: i64,
    /// 0: there is no event log.
    pub eventlog_length: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TeepodInfo {
    pub id: i64,
    pub name: String,
    /// Null when the node can be reached.
    pub error: Option<String>,
    pub kms_url: Option<String>,
    pub kms_urls: Vec<String>,
    pub teepod_version_db: Option<String>,
    /// Null while the node is offline.
    pub teepod_version_real: Option<String>,
    pub available_os_images: Vec<TeepodImageInfo>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TeepodImageInfo {
    pub name: String,
    pub version: String,
    pub is_dev: bool,
}

/// Inspect a KMS
#[utoipa::path(get, path = "/api/v1/kms/{kms_id}/info", tag = "KMS", operation_id = "kms_info",
    params(("kms_id" = String, Path, description = "`kms_` or `kc_` id, slug, or `phala`")),
    responses((status = 200, body = KmsInspectResponse), (status = 401, description = "Authentication required"),
        (status = 404, description = "KMS not found")))]
pub async fn inspect(
    State(app): State<App>,
    _: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<KmsInspectResponse>, Failure> {
    kms::check(&id)?;
    let keys = app.control.kms_root_keys();
    let url = &app.control.settings.public_url;
    let nodes = app.control.store.nodes().await?;
    Ok(Json(KmsInspectResponse {
        id: kms_id(),
        slug: Some(KMS_SLUG.to_owned()),
        endpoint: url.clone(),
        kms_type: KMS_TYPE.to_owned(),
        db_version: VERSION.to_owned(),
        rpc: Some(KmsRpcInfo {
            version: VERSION.to_owned(),
            is_dev: true,
            bootstrap_info: BootstrapInfo {
                ca_pubkey: keys.ca,
                k256_pubkey: keys.k256,
                quote_length: 0,
                eventlog_length: 0,
            },
            chain_id: None,
            kms_contract_address: None,
            gateway_app_id: None,
            version_synced: true,
        }),
        rpc_error: None,
        guest_agent: None,
        guest_agent_error: Some("This KMS is part of the server and runs outside of any TEE.".to_owned()),
        on_chain: None,
        teepods: nodes.iter().map(|node| teepod(&app, node, url)).collect::<Result<_, _>>()?,
    }))
}

fn teepod(app: &App, node: &Node, url: &str) -> Result<TeepodInfo, Error> {
    let online = node.is_online(app.control.now(), app.control.node_patience());
    let image = |image: holdfast_model::image::ImageInfo| TeepodImageInfo {
        name: image.name,
        version: image.version,
        is_dev: image.is_dev,
    };
    Ok(TeepodInfo {
        id: node.id,
        name: node.name.clone(),
        error: (!online).then(|| "The node is offline.".to_owned()),
        kms_url: Some(url.to_owned()),
        kms_urls: vec![url.to_owned()],
        teepod_version_db: Some(node.version.clone()),
        teepod_version_real: online.then(|| node.version.clone()),
        available_os_images: node.images()?.into_iter().map(image).collect(),
    })
}
