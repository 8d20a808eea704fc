//! Deploying in two requests: provision (what would run, and under which ids and keys) and commit (run it).
//!
//! The one rule: an option that this server cannot honour is refused by name. Whoever asked for a GPU or pinned memory
//! must not get a CVM that quietly has neither.

use axum::extract::State;
use holdfast_control::deploy::{CommitRequest, ProvisionRequest};
use holdfast_model::error::{Code, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, InProject, Info, WriteVms};
use crate::json::Json;
use crate::phala::lenient::{Flag, Integer};
use crate::phala::version::Asked;
use crate::phala::view::machine::Machine;
use crate::phala::view::parts::KmsInfo;
use crate::phala::view::{self, kms_id, kms_info};

/// What to deploy.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ProvisionDstackAppRequest {
    /// 5 to 63 letters, digits and single dashes, beginning with a letter.
    name: String,
    /// app-compose.json; what is left out gets its default.
    #[schema(value_type = Object)]
    compose_file: Map<String, Value>,
    /// See `GET /instance-types`; `tdx.small` unless told.
    instance_type: Option<String>,
    #[schema(value_type = Option<i64>)]
    vcpu: Option<Integer>,
    /// MB.
    #[schema(value_type = Option<i64>)]
    memory: Option<Integer>,
    /// GB.
    #[schema(value_type = Option<i64>)]
    disk_size: Option<Integer>,
    /// See `GET /os-images`; the newest unless told.
    image: Option<String>,
    #[schema(value_type = Option<bool>)]
    prefer_dev: Option<Flag>,
    /// Only on this node.
    #[serde(alias = "node_id")]
    #[schema(value_type = Option<i64>)]
    teepod_id: Option<Integer>,
    region: Option<String>,
    /// True unless told.
    #[schema(value_type = Option<bool>)]
    listed: Option<Flag>,
    /// `phala`, in any case: this server's own KMS.
    kms: Option<String>,
    kms_id: Option<String>,
    kms_contract: Option<String>,
    /// Must be the address that the workspace's address and `nonce` give.
    app_id: Option<String>,
    #[schema(value_type = Option<i64>)]
    nonce: Option<Integer>,
    user_config: Option<String>,
    #[schema(value_type = Option<Object>)]
    gpus: Option<Value>,
    #[schema(value_type = Option<Vec<Object>>)]
    ports: Option<Vec<Value>>,
    kms_urls: Option<Vec<String>>,
    gateway_urls: Option<Vec<String>>,
    #[schema(value_type = Option<bool>)]
    hugepages: Option<Flag>,
    #[schema(value_type = Option<bool>)]
    pin_numa: Option<Flag>,
}

impl ProvisionDstackAppRequest {
    fn check(&self) -> Result<(), Error> {
        let set = |flag: Option<Flag>| flag.is_some_and(|flag| flag.0);
        let any = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let refused = [
            (set(self.hugepages), "hugepages: this server does not pin memory."),
            (set(self.pin_numa), "pin_numa: this server does not pin CVMs to NUMA nodes."),
            (any(&self.kms_urls), "kms_urls: this server has a KMS of its own."),
            (any(&self.gateway_urls), "gateway_urls: this server has no gateways."),
            (self.ports.as_ref().is_some_and(|p| !p.is_empty()), "ports: they are published as the compose file says."),
            (self.kms_contract.is_some(), "kms_contract: this server's KMS is off any chain."),
        ];
        match refused.into_iter().find(|(asked, _)| *asked) {
            Some((_, why)) => Err(Error::new(Code::FeatureMissing, why)),
            None => Ok(()),
        }
    }
}

/// An empty list of GPUs asks for none.
pub(super) fn asks_for_gpus(gpus: Option<&Value>) -> bool {
    let Some(gpus) = gpus.filter(|gpus| !gpus.is_null()) else { return false };
    gpus["attach_mode"] == "all" || gpus["gpus"].as_array().is_some_and(|list| !list.is_empty())
}

/// What provisioning came to. Kept for 14 days.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProvisionDstackAppResponse {
    /// sha256 of app-compose.json, 64 hex digits.
    compose_hash: String,
    /// 40 hex digits.
    app_id: Option<String>,
    /// X25519 key to encrypt env values to, 64 hex digits.
    app_env_encrypt_pubkey: Option<String>,
    kms_info: Option<KmsInfo>,
    fmspc: Option<String>,
    device_id: Option<String>,
    os_image_hash: Option<String>,
    instance_type: Option<String>,
    /// A node that has room now.
    teepod_id: Option<i64>,
    node_id: Option<i64>,
    kms_id: Option<String>,
    kms_contract_id: Option<String>,
}

/// What was provisioned and is now to run.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CreateCvmRequest {
    app_id: String,
    compose_hash: String,
    /// Hex of the env, encrypted to the app's key.
    encrypted_env: Option<String>,
    /// Names of the encrypted env values.
    env_keys: Option<Vec<String>>,
    kms_id: Option<String>,
}

/// A CVM that is being created.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreatedCvm {
    #[serde(flatten)]
    machine: Machine,
    app_auth_contract_address: Option<String>,
    deployer_address: Option<String>,
}

/// Provision an app
#[utoipa::path(post, path = "/api/v1/cvms/provision", tag = "CVMs", operation_id = "cvms_provision",
    request_body = ProvisionDstackAppRequest,
    params(("X-Holdfast-Project" = Option<String>, Header, description = "UUID or name of the project that the app is to go to; the one that the key is limited to, or the default one, unless told")),
    responses((status = 200, body = ProvisionDstackAppResponse),
        (status = 400, description = "The compose file or the wanted size cannot be had"),
        (status = 401, description = "Authentication required"),
        (status = 403, description = "The key is not made for the project"),
        (status = 404, description = "There is no such project"),
        (status = 409, description = "The name is taken, or the app is in another project"),
        (status = 422, description = "Validation error")))]
pub async fn provision(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    InProject(project): InProject,
    Body(request): Body<ProvisionDstackAppRequest>,
) -> Result<Json<ProvisionDstackAppResponse>, Failure> {
    request.check()?;
    let number = |n: Option<Integer>| n.map(|n| n.0);
    let wanted = ProvisionRequest {
        gpus: asks_for_gpus(request.gpus.as_ref()),
        name: request.name,
        compose_file: request.compose_file,
        instance_type: request.instance_type,
        vcpu: number(request.vcpu),
        memory_mb: number(request.memory),
        disk_gb: number(request.disk_size),
        image: request.image,
        prefer_dev: request.prefer_dev.is_some_and(|flag| flag.0),
        node_id: number(request.teepod_id),
        region: request.region,
        listed: request.listed.is_none_or(|flag| flag.0),
        kms: request.kms,
        kms_id: request.kms_id,
        app_id: request.app_id,
        nonce: number(request.nonce),
        user_config: request.user_config,
        project,
    };
    let done = app.control.provision(&caller.who, &info, wanted).await?;
    Ok(Json(ProvisionDstackAppResponse {
        compose_hash: done.compose_hash,
        app_id: Some(done.app_id),
        app_env_encrypt_pubkey: Some(done.env_public_key),
        kms_info: Some(kms_info(&app.control)),
        fmspc: None,
        device_id: None,
        os_image_hash: done.os_image_hash,
        instance_type: done.instance_type,
        teepod_id: Some(done.node_id),
        node_id: Some(done.node_id),
        kms_id: Some(kms_id()),
        kms_contract_id: None,
    }))
}

/// Create a CVM
///
/// Repeating the request answers the CVM that the first one made.
#[utoipa::path(post, path = "/api/v1/cvms", tag = "CVMs", operation_id = "cvms_create",
    request_body = CreateCvmRequest,
    params(("X-Holdfast-Project" = Option<String>, Header, description = "UUID or name of the project that the app is to go to; as it was provisioned unless told")),
    responses((status = 200, body = CreatedCvm), (status = 400, description = "No room"),
        (status = 401, description = "Authentication required"),
        (status = 403, description = "The key is not made for the project"),
        (status = 404, description = "There is no such project"),
        (status = 409, description = "The name is taken, or the app is in another project or runs with another configuration"),
        (status = 422, description = "Validation error, or nothing was provisioned")))]
pub async fn commit(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    InProject(project): InProject,
    Body(request): Body<CreateCvmRequest>,
) -> Result<Json<CreatedCvm>, Failure> {
    let wanted = CommitRequest {
        app_id: request.app_id,
        compose_hash: request.compose_hash,
        encrypted_env: request.encrypted_env,
        env_keys: request.env_keys,
        kms_id: request.kms_id,
        project,
    };
    let vm = app.control.commit(&caller.who, &info, wanted).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(Json(CreatedCvm {
        machine: Machine::of(&cvm, asked.of(&caller.who)),
        app_auth_contract_address: None,
        deployer_address: None,
    }))
}
