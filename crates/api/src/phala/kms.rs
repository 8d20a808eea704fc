//! `/kms`: this server's own key management service, in the words of each schema version.
//!
//! The one rule: the answers about pages, keys and next app ids have exactly the keys that the clients' strict schemas name.
//! One key more and the official SDK refuses the whole answer.

use axum::extract::{Path, State};
use holdfast_control::deploy::{KMS_KEY, KMS_SLUG};
use holdfast_control::kms::{self, KMS_TYPE};
use holdfast_model::VERSION;
use holdfast_model::hashid::{self, Prefix};
use serde::Serialize;
use utoipa::ToSchema;

use super::lenient::switch;
use super::page::{Page, Wanted};
use super::version::{Asked, Version};
use super::view::parts::KmsInfo;
use super::view::{kms_id, kms_info};
use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Params, Read};
use crate::json::Json;

/// A KMS as 2026-06-23 shows it: a root of trust, which on a chain would be a contract.
#[derive(Debug, Serialize, ToSchema)]
pub struct KmsContract {
    /// `kc_...`
    pub id: String,
    pub slug: Option<String>,
    pub label: Option<String>,
    /// `phala`: no contract, off any chain.
    pub contract_address: String,
    /// 0: no chain.
    pub chain_id: i64,
    /// Signs env keys: a compressed secp256k1 point in hex.
    pub k256_pubkey: Option<String>,
    /// App keys derive from it: a P-256 SubjectPublicKeyInfo in hex.
    pub ca_pubkey: Option<String>,
    pub node_count: i64,
}

/// A KMS in the variant of the schema version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Kms {
    Info(KmsInfo),
    Contract(KmsContract),
}

impl Kms {
    fn of(app: &App, version: Version) -> Self {
        if version < Version::V20260623 {
            return Self::Info(kms_info(&app.control));
        }
        let keys = app.control.kms_root_keys();
        Self::Contract(KmsContract {
            id: hashid::encode(Prefix::KmsContract, KMS_KEY),
            slug: Some(KMS_SLUG.to_owned()),
            label: Some("This server's own KMS".to_owned()),
            contract_address: KMS_TYPE.to_owned(),
            chain_id: 0,
            k256_pubkey: Some(keys.k256),
            ca_pubkey: Some(keys.ca),
            node_count: 1,
        })
    }
}

/// The processes that answer for a KMS.
#[derive(Debug, Serialize, ToSchema)]
pub struct KmsNodes {
    pub items: Vec<KmsNode>,
    pub total: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct KmsNode {
    /// `kms_...`
    pub id: String,
    pub slug: Option<String>,
    pub url: String,
    pub version: String,
    /// Always `phala`: off any chain.
    pub kms_type: String,
}

/// The key that an app's env values are encrypted to.
#[derive(Debug, Serialize, ToSchema)]
pub struct EnvPublicKey {
    /// X25519, 64 hex digits.
    pub public_key: String,
    /// By the KMS root key, over the app id and the public key; 130 hex digits: r, s and the recovery id.
    pub signature: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NextAppIds {
    pub app_ids: Vec<NextAppId>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NextAppId {
    /// 40 hex digits.
    pub app_id: String,
    pub nonce: i64,
}

/// List KMS
#[utoipa::path(get, path = "/api/v1/kms", tag = "KMS", operation_id = "kms_list",
    params(("page" = Option<i64>, Query, minimum = 1, description = "Counted from 1"),
        ("page_size" = Option<i64>, Query, minimum = 1, maximum = 100, description = "20 unless told"),
        ("is_onchain" = Option<bool>, Query, description = "There is none on a chain")),
    responses((status = 200, body = Page<Kms>), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn list(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    params: Params,
) -> Result<Json<Page<Kms>>, Failure> {
    let page = Wanted::read(&params, 20)?;
    let all = match switch(&params, "is_onchain")? {
        Some(true) => Vec::new(),
        _ => vec![Kms::of(&app, asked.of(&caller.who))],
    };
    Ok(Json(page.cut(all)))
}

/// Get a KMS
#[utoipa::path(get, path = "/api/v1/kms/{kms_id}", tag = "KMS", operation_id = "kms_get",
    params(("kms_id" = String, Path, description = "`kms_` or `kc_` id, slug, or `phala`")),
    responses((status = 200, body = Kms), (status = 401, description = "Authentication required"),
        (status = 404, description = "KMS not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Path(id): Path<String>,
) -> Result<Json<Kms>, Failure> {
    kms::check(&id)?;
    Ok(Json(Kms::of(&app, asked.of(&caller.who))))
}

/// List the nodes of a KMS
#[utoipa::path(get, path = "/api/v1/kms/{kms_id}/nodes", tag = "KMS", operation_id = "kms_nodes",
    params(("kms_id" = String, Path, description = "`kms_` or `kc_` id, slug, or `phala`")),
    responses((status = 200, body = KmsNodes), (status = 401, description = "Authentication required"),
        (status = 404, description = "KMS not found")))]
pub async fn nodes(State(app): State<App>, _: Caller<Read>, Path(id): Path<String>) -> Result<Json<KmsNodes>, Failure> {
    kms::check(&id)?;
    let node = KmsNode {
        id: kms_id(),
        slug: Some(KMS_SLUG.to_owned()),
        url: app.control.settings.public_url.clone(),
        version: VERSION.to_owned(),
        kms_type: KMS_TYPE.to_owned(),
    };
    Ok(Json(KmsNodes { items: vec![node], total: 1 }))
}

/// Get an app's env key
#[utoipa::path(get, path = "/api/v1/kms/{kms_id}/pubkey/{app_id}", tag = "KMS", operation_id = "kms_pubkey",
    params(("kms_id" = String, Path, description = "`kms_` or `kc_` id, slug, or `phala`"),
        ("app_id" = String, Path, description = "40 hex digits, also with `0x` before them; the app need not exist yet")),
    responses((status = 200, body = EnvPublicKey), (status = 400, description = "The app id is none"),
        (status = 401, description = "Authentication required"), (status = 404, description = "KMS not found")))]
pub async fn pubkey(
    State(app): State<App>,
    _: Caller<Read>,
    Path((id, app_id)): Path<(String, String)>,
) -> Result<Json<EnvPublicKey>, Failure> {
    kms::check(&id)?;
    let key = app.control.kms_env_key(&app_id)?;
    Ok(Json(EnvPublicKey { public_key: key.public_key, signature: key.signature }))
}

/// Predict app ids
#[utoipa::path(get, path = "/api/v1/kms/phala/next_app_id", tag = "KMS", operation_id = "kms_next_app_ids",
    params(("counts" = Option<i64>, Query, minimum = 1, maximum = 20, description = "1 unless told")),
    responses((status = 200, body = NextAppIds), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn next_app_ids(
    State(app): State<App>,
    caller: Caller<Read>,
    params: Params,
) -> Result<Json<NextAppIds>, Failure> {
    let count = params.integer("counts", 1, 20)?.unwrap_or(1);
    let next = app.control.kms_next_app_ids(&caller.who, usize::try_from(count).unwrap_or(1)).await?;
    let app_ids = next.into_iter().map(|id| NextAppId { app_id: id.app_id, nonce: id.nonce }).collect();
    Ok(Json(NextAppIds { app_ids }))
}
